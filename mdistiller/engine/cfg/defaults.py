"""Every configuration key of the library, with its default value."""

from yacs.config import CfgNode as CN

_C = CN()

_C.EXPERIMENT = CN()
_C.EXPERIMENT.PROJECT = "distill"
_C.EXPERIMENT.NAME = ""  # output folder below LOG.PREFIX; empty: PROJECT/TAG
_C.EXPERIMENT.TAG = "default"
_C.EXPERIMENT.SEED = 0
_C.EXPERIMENT.REFERENCE = []  # summary.json files of other runs, listed in the final table

_C.DATASET = CN()
_C.DATASET.TYPE = "cifar100"
_C.DATASET.ROOT = ""  # empty: the data set's own folder below data/
_C.DATASET.NUM_WORKERS = 2
_C.DATASET.INPUT_SIZE = None  # side in pixels; None: the data set's own
_C.DATASET.MEAN = None  # of images in [0, 1]; None: known or measured once
_C.DATASET.STD = None
_C.DATASET.TRAIN_FRACTION = 1.0  # class-balanced part of the training set, in (0, 1]
_C.DATASET.VAL_FRACTION = 0.0  # class-balanced part of train/ to validate on where there is no val/, in [0, 1)
_C.DATASET.AUGMENT = "auto"  # auto | pad_crop | resized_crop | rotate_flip | none
_C.DATASET.PADDING = 4  # pixels, of pad_crop
_C.DATASET.ROTATION = 20.0  # largest angle of rotate_flip, degrees
_C.DATASET.FLIP = True  # mirror half of the training images (not with AUGMENT none); False for digits, text, arrows
_C.DATASET.IN_MEMORY = "auto"  # auto | yes | no
_C.DATASET.MEMORY_GB = 2.0  # what auto may fill with images, GiB
_C.DATASET.CORRUPT = "refuse"  # refuse | skip | unchecked: pictures that cannot be read
_C.DATASET.TEST = CN()
_C.DATASET.TEST.BATCH_SIZE = None  # None: 256 images of 32 px, or as many pixels of larger ones, at least 64

_C.DISTILLER = CN()
_C.DISTILLER.TYPE = "NONE"
_C.DISTILLER.TEACHER = "ResNet50"
_C.DISTILLER.STUDENT = "resnet32"
_C.DISTILLER.TEACHER_WEIGHTS = ""  # checkpoint; empty: the released one of that name

_C.SOLVER = CN()
_C.SOLVER.TRAINER = "base"
_C.SOLVER.BATCH_SIZE = 64
_C.SOLVER.EPOCHS = 240
_C.SOLVER.LR = 0.05
_C.SOLVER.SCHEDULE = "step"  # step | cosine | linear
_C.SOLVER.LR_DECAY_STAGES = [150, 180, 210]  # epochs after which the rate falls
_C.SOLVER.LR_DECAY_RATE = 0.1
_C.SOLVER.WARMUP_EPOCHS = 0.0  # linear rise of the rate from 0, before the schedule's own value
_C.SOLVER.WEIGHT_DECAY = 0.0001
_C.SOLVER.MOMENTUM = 0.9
_C.SOLVER.NESTEROV = False
_C.SOLVER.TYPE = "SGD"
_C.SOLVER.DOT = CN()
_C.SOLVER.DOT.DELTA = 0.075  # by which trainer dot parts the momenta of task and distillation
_C.SOLVER.AMP = "auto"  # auto | off | bf16 | fp16
_C.SOLVER.COMPILE = "off"  # off | default | reduce-overhead | max-autotune: torch.compile's mode
_C.SOLVER.SYNC_BN = True  # whether BatchNorm sees the images of all processes
_C.SOLVER.CHECKPOINT_EVERY = ""  # "500 steps" | "10 minutes", besides after each epoch

_C.LOG = CN()
_C.LOG.TENSORBOARD_FREQ = 500  # steps
_C.LOG.SAVE_CHECKPOINT_FREQ = 40  # epochs between the checkpoints that are kept
_C.LOG.PREFIX = "./output"
_C.LOG.WANDB = True

_C.TEACHER_CACHE = "off"  # off | memory | a folder: where the teacher's logits or pooled features are kept

_C.PLUGINS = []  # files and modules with distillers of one's own

DEFAULTS = _C
