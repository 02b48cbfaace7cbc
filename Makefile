# the checks of CI, in the current environment
.PHONY: check demo
check:
	python3 -m ruff check .
	python3 -m ruff format --check .
	python3 -m mypy
	python3 -m pytest -n 3 --dist worksteal

demo:
	python3 tools/train.py --cfg configs/demo/sfakd.yaml --overwrite
