"""Every configuration key of the library, with its default value.

The comments become docs/configuration.md (`python3 tools/make_config_docs.py`). The comment of a key stands at the end
of its line or on the lines above it.
"""

from yacs.config import CfgNode as CN

_C = CN()

_C.EXPERIMENT = CN()
_C.EXPERIMENT.PROJECT = "distill"  # Weights & Biases project
_C.EXPERIMENT.NAME = ""  # output folder below `LOG.PREFIX`, not absolute, without `..`; if empty, `PROJECT/TAG`
_C.EXPERIMENT.TAG = "default"  # Weights & Biases tags, separated by commas
_C.EXPERIMENT.SEED = 0  # seed of initial weights, data order and augmentation
_C.EXPERIMENT.REFERENCE = []  # `summary.json` files of other runs, listed in the final table

_C.DATASET = CN()
# `cifar100`, `cifar10`, `imagenet`, `tiny_imagenet`, `imagefolder`, `webdataset`, `huggingface` or `fashion_demo`. See
# [data-formats.md](data-formats.md).
_C.DATASET.TYPE = "cifar100"
# Folder of the data set. If empty: its default folder below `data/` or `$MDISTILLER_DATA`; `imagefolder`, `webdataset`
# and `huggingface` have none. For `TYPE huggingface` also a Parquet file, or the name of a data set in the cache of the
# `datasets` library.
_C.DATASET.ROOT = ""
_C.DATASET.IMAGE_COLUMN = "image"  # `TYPE huggingface`: column of the images
_C.DATASET.LABEL_COLUMN = "label"  # `TYPE huggingface`: column of the labels
# Folder of images without labels, at any depth, for all methods except `CRD`, `DKD`, `RLD` and `NONE`. Each batch gets
# some of them besides its `BATCH_SIZE` labeled images. See [data-formats.md](data-formats.md#images-without-labels). If
# empty: none.
_C.DATASET.UNLABELED = ""
_C.DATASET.UNLABELED_RATIO = 1.0  # images without labels in a batch, for each labeled image
# Number of decoding threads for images held in memory, of worker processes for streamed images; up to 512. For
# ImageNet, set it to the number of CPU cores.
_C.DATASET.NUM_WORKERS = 2
_C.DATASET.INPUT_SIZE = None  # side of the images in pixels, up to 4096; `None`: that of the data set
# Mean per channel of images scaled to [0, 1]. `None`: the known value of the data set, or measured once and cached.
_C.DATASET.MEAN = None
_C.DATASET.STD = None  # standard deviation per channel, as for `MEAN`; give both or neither
_C.DATASET.TRAIN_FRACTION = 1.0  # class-balanced, seeded fraction of the training set to use, in (0, 1]
_C.DATASET.FRACTION_SEED = None  # seed of that choice; `None`: `EXPERIMENT.SEED`
# Class-balanced fraction of `train/` to validate on when there is no `val/`, in [0, 1); the same for every seed.
_C.DATASET.VAL_FRACTION = 0.0
# `pad_crop` (zero padding, random crop, flip), `resized_crop` (random resized crop, flip), `rotate_flip` (rotation,
# flip), `none` or `auto`. `auto` is `pad_crop` up to 64 pixels and `resized_crop` above.
_C.DATASET.AUGMENT = "auto"
_C.DATASET.PADDING = 4  # padding of `pad_crop` in pixels, less than the side of the image
_C.DATASET.ROTATION = 20.0  # largest angle of `rotate_flip` in degrees, up to 180
# Mirror half of the training images (no effect with `AUGMENT none`). Set it to `False` for images with a direction,
# such as digits, text or arrows.
_C.DATASET.FLIP = True
# Random augmentation policy, applied after `AUGMENT`: `none`, `rand_augment` or `trivial_augment`. Images are then read
# by worker processes (`NUM_WORKERS`), as with `ERASING`. See [recipe.md](recipe.md#augmentation).
_C.DATASET.POLICY = "none"
_C.DATASET.POLICY_OPS = 2  # operations of `rand_augment` for each image
_C.DATASET.POLICY_MAGNITUDE = 9  # strength of `rand_augment`, from 0 to 30
_C.DATASET.ERASING = 0.0  # probability that a random box of an image is erased, from 0 to 1
# mixup: blend each training image with another one of its batch, with a weight drawn from Beta(α, α). The value is α,
# for example 0.2; 0: never. For methods that take mixed labels; the teacher sees the same image.
_C.DATASET.MIXUP = 0.0
# CutMix: paste a box of another image of its batch into each training image; the box's share of the area is drawn from
# Beta(α, α). The value is α, for example 1; 0: never. With `MIXUP` too, each batch takes one of the two at random.
_C.DATASET.CUTMIX = 0.0
# Fixed views: draw this many augmented forms of each training image once, and show them in turn in the epochs. So
# `TEACHER_CACHE` works with any augmentation of single images. 0: new augmentation in each epoch. See
# [speed.md](speed.md#fixed-views).
_C.DATASET.VIEWS = 0
_C.DATASET.VIEWS_SEED = None  # seed of the views; runs that share a cache need the same. `None`: `EXPERIMENT.SEED`
_C.DATASET.IN_MEMORY = "auto"  # hold decoded images in memory: `yes`, `no` or `auto` (if they fit `MEMORY_GB`)
_C.DATASET.MEMORY_GB = 2.0  # memory that `IN_MEMORY auto` may fill with images, in GiB per process
# Images that cannot be used: `refuse` the data set, `skip` the images, or `unchecked` (streamed images are not checked
# before training; a bad one stops the run when it is read).
_C.DATASET.CORRUPT = "refuse"
_C.DATASET.TEST = CN()
# Evaluation batch size. `None`: 256 images of 32 pixels, or the same number of pixels in larger images, at least 64.
_C.DATASET.TEST.BATCH_SIZE = None

_C.DISTILLER = CN()
_C.DISTILLER.TYPE = "NONE"  # `NONE` (the student alone), or the section name of one of the methods below
# Teacher model: a name of the zoo, `timm/NAME`, `torchvision/NAME`, or your own function, as `my_package.models:make`
# or `path/to/file.py:make`. See [models.md](models.md#any-model-by-name).
_C.DISTILLER.TEACHER = "ResNet50"
_C.DISTILLER.STUDENT = "resnet32"  # student model, named in the same ways
# Checkpoint of the teacher, or `pretrained` for the weights that its library releases. If empty: the released CIFAR-100
# teacher of that name, for ImageNet torchvision's weights; your own function is expected to load its weights.
_C.DISTILLER.TEACHER_WEIGHTS = ""
# Weights that the student starts from: a checkpoint, or `pretrained`. If empty: random ones.
_C.DISTILLER.STUDENT_WEIGHTS = ""
_C.DISTILLER.TEACHER_ARGS = None  # keyword arguments of the teacher's constructor, such as `{img_size: 96}`
_C.DISTILLER.STUDENT_ARGS = None  # keyword arguments of the student's constructor
# For a teacher that returns logits alone: names of its modules, as `{classifier: fc, final_map: layer4, feats: [stem,
# layer1, layer4]}`. `None`: found automatically.
_C.DISTILLER.TEACHER_FEATURES = None
_C.DISTILLER.STUDENT_FEATURES = None  # the same for the student
# The images that the teacher sees, as `{size: 224, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], interpolation:
# bicubic}`; entries that are left out are the student's. `same`: as the student. `pretrained`: those of its library's
# weights. `None`: those that its checkpoint records, with `TEACHER_WEIGHTS pretrained` those of its library, for
# released teachers those of CIFAR-100 or ImageNet, else as the student.
_C.DISTILLER.TEACHER_INPUT = None
# Names of the teacher's outputs, if it has other classes than the data set: a text file with one name a line, or
# `imagenet` for the 1000 classes of ImageNet-1k. The outputs for the data set's classes are then selected by class
# name, WordNet ID (wnid) or word. If empty: what its checkpoint records, else the data set's classes in order. See
# [models.md](models.md#a-teacher-with-other-classes).
_C.DISTILLER.TEACHER_CLASSES = ""

_C.SOLVER = CN()
_C.SOLVER.TRAINER = "base"  # `base`, or `dot` for DOT's update rule; `crd` and `crd_dot` are MDistiller's aliases
_C.SOLVER.BATCH_SIZE = 64  # images per step over all processes, up to a million
_C.SOLVER.EPOCHS = 240  # number of epochs, up to a million
_C.SOLVER.LR = 0.05  # learning rate
_C.SOLVER.SCHEDULE = "step"  # `step`, `cosine` or `linear`; `cosine` and `linear` decay to 0
_C.SOLVER.LR_DECAY_STAGES = [150, 180, 210]  # epochs after which `SCHEDULE step` multiplies the rate by `LR_DECAY_RATE`
_C.SOLVER.LR_DECAY_RATE = 0.1  # factor of the learning rate at each of `LR_DECAY_STAGES`
_C.SOLVER.WARMUP_EPOCHS = 0.0  # epochs over which the learning rate rises linearly to the value of the schedule
_C.SOLVER.WEIGHT_DECAY = 0.0001  # weight decay
_C.SOLVER.DECAY_NORMS = True  # `True`: weight decay applies to all weights; `False`: not to norms and biases
_C.SOLVER.MOMENTUM = 0.9  # momentum of SGD, and of optimizers of timm that have one
_C.SOLVER.NESTEROV = False  # use Nesterov momentum; for `TYPE SGD`
# Optimizer: `SGD`, `AdamW`, or an optimizer of `timm.optim` by its name, such as `lamb`, if timm is installed
# (`pip install timm`).
_C.SOLVER.TYPE = "SGD"
_C.SOLVER.BETAS = None  # coefficients of AdamW's averages, and of timm's optimizers; `None`: the optimizer's default
_C.SOLVER.EPS = 0.0  # constant in the denominator of the same optimizers; 0: the optimizer's default
_C.SOLVER.CLIP_GRAD_NORM = 0.0  # scale gradients down to this norm, taken over all parameters together; 0: never
# Gradient accumulation: compute a step in this many micro-batches, one after the other, to save memory. A step still
# has `BATCH_SIZE` images in all. BatchNorm, and losses that relate images, see one micro-batch at a time.
_C.SOLVER.ACCUMULATE = 1
# Factor of the learning rate from each layer of the student to the layer before it, in (0, 1], for fine-tuning. See
# [recipe.md](recipe.md#fine-tuning).
_C.SOLVER.LAYER_DECAY = 1.0
# Factor of the learning rate of all of the student's layers except its classifier, in (0, 1], for fine-tuning.
_C.SOLVER.BACKBONE_LR_FACTOR = 1.0
# Train the student's classifier alone before the first epoch, by L-BFGS, in at most this many passes over the pooled
# features of the un-augmented training images, which are computed once and kept in memory. 0: start with the classifier
# as it is. See [recipe.md](recipe.md#fine-tuning).
_C.SOLVER.PROBE_EPOCHS = 0
# Let the student's BatchNorms keep the statistics that they have, and normalize with them in training too, for
# fine-tuning. Their weights and biases are trained.
_C.SOLVER.FREEZE_BN = False
_C.SOLVER.DOT = CN()
# DOT: added to the momentum of the distillation gradient, and subtracted from the momentum of the task gradient.
_C.SOLVER.DOT.DELTA = 0.075
# Share of a label's probability that is divided among all classes, for example 0.1; for methods that take such labels.
_C.SOLVER.LABEL_SMOOTHING = 0.0
# Decay of an exponential moving average of the student's weights, in (0, 1), for example 0.999; in the first steps it
# is smaller. The average is evaluated and deployed. 0: none. See [recipe.md](recipe.md#average-of-the-weights).
_C.SOLVER.EMA = 0.0
# Mixed precision: `off`, `bf16`, `fp16` or `auto`. `auto` is bfloat16 where the hardware is fast at it, else `off`.
_C.SOLVER.AMP = "auto"
# Mode of `torch.compile`: `off`, `default`, `reduce-overhead` (CUDA graphs) or `max-autotune`.
_C.SOLVER.COMPILE = "off"
# Training batches over which the student's BatchNorm statistics are re-estimated before each evaluation, at most one
# pass; training does not change. 0: evaluate with the running statistics. See
# [results.md](results.md#batchnorm-statistics).
_C.SOLVER.PRECISE_BN = 0
# With `PRECISE_BN`, also evaluate with the running statistics (`running_top1` in metrics.jsonl). An evaluation then
# takes twice as long.
_C.SOLVER.PRECISE_BN_COMPARE = False
# Evaluate on the validation images after every N-th epoch, and after the last. The student is saved after evaluations
# only, and the best epoch is one of these.
_C.SOLVER.EVAL_EVERY = 1
_C.SOLVER.SYNC_BN = True  # compute BatchNorm statistics over all processes; `False`: in each process on its own
# Save the state within epochs too, every `500 steps` or `10 minutes` for example. If empty, only after each epoch.
_C.SOLVER.CHECKPOINT_EVERY = ""

_C.LOG = CN()
_C.LOG.TENSORBOARD_FREQ = 500  # steps between two entries of the step losses in TensorBoard
_C.LOG.SAVE_CHECKPOINT_FREQ = 40  # epochs between two checkpoints `epoch_N.pth`, which are kept
_C.LOG.PREFIX = "./output"  # parent folder of the output folder
_C.LOG.WANDB = True  # log to Weights & Biases; offline without credentials or a connection

# Cache of the teacher's logits or pooled features: `off`, `memory`, or a folder, such as `./cache`, that later runs
# reuse. See [speed.md](speed.md#teacher-cache).
_C.TEACHER_CACHE = "off"
# Maximum size in GiB of all tables of the teacher's outputs in the folder of `TEACHER_CACHE`, or in memory. A table
# that would exceed it is not made. 0: the free space of the disk, or half of the free memory.
_C.TEACHER_CACHE_GB = 0.0
# Keep only this many of the teacher's largest logits for each form of an image, and the probability of all other
# classes together, to save room with many classes. 0: all logits. See [speed.md](speed.md#fixed-views).
_C.TEACHER_TOP_LOGITS = 0

# Files and modules with your own distillers and models, loaded before the rest of the configuration. See
# [plugins.md](plugins.md).
_C.PLUGINS = []

DEFAULTS = _C
