# Map one large scene in parts with make, which runs several at a time and makes only what is missing or out of date.
#
#   make -f examples/regions.mk -j 2 MODEL=runs/mine SCENE=scene.tif MAP=map.tif [SIZE=8192]
#
# Give each process its share of the cores (OMP_NUM_THREADS).

SIZE := 8192
PARTS := $(basename $(MAP))_parts

# One word per region: r00_c03@xmin,ymin,xmax,ymax
REGIONS := $(shell skysense regions $(SCENE) --size $(SIZE) | tr '\t' '@')
ifeq ($(REGIONS),)
$(error $(SCENE) cannot be cut)
endif
IDS := $(foreach region,$(REGIONS),$(firstword $(subst @, ,$(region))))
bbox = $(lastword $(subst @, ,$(filter $(1)@%,$(REGIONS))))

$(MAP): $(IDS:%=$(PARTS)/%.tif)
	skysense mosaic $^ --out $@ --overwrite

$(PARTS)/%.tif: $(SCENE) | $(PARTS)
	skysense predict $< --model $(MODEL) --bbox=$(call bbox,$*) --out $@ --overwrite --quiet

$(PARTS):
	mkdir -p $@
