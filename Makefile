# Every target needs only a Rust toolchain (cargo, rustup's rustfmt and clippy for `lint`), except `goldens`, which needs Python.

CARGO ?= cargo
PYTHON ?= .venv/bin/python
DEMO_PROMPT ?= red apple
DEMO_SEED ?= 1
TARGET := $(or $(CARGO_TARGET_DIR),target)
DEMO_PICTURE := $(TARGET)/scumble-demo.png

# Mesa's device-select layer looks for a Wayland display and complains on stderr where there is no session at all.
ifeq ($(XDG_RUNTIME_DIR),)
export NODEVICE_SELECT ?= 1
endif

.PHONY: help demo test lint bench goldens

help:
	@echo "make demo     build scumble and draw \"$(DEMO_PROMPT)\" with the built-in model to $(DEMO_PICTURE)"
	@echo "make test     run every test; needs no GPU (a software Vulkan driver serves) and no Python"
	@echo "make lint     check formatting, clippy and the documentation, warnings being errors"
	@echo "make bench    time the kernels, a step and a whole picture on this machine's adapter"
	@echo "make goldens  compute anew, with PyTorch and diffusers, the numbers that the tests compare with"

demo:
	@tools/ensure-vulkan.sh
	$(CARGO) build --release --locked
	@tools/ensure-vulkan.sh $(TARGET)/release/scumble
	$(TARGET)/release/scumble generate "$(DEMO_PROMPT)" --seed $(DEMO_SEED) --output $(DEMO_PICTURE)

# The tests fail on a machine without an adapter; the built program is asked for one first, which installs a driver where that can be done.
# It is built with the tests: by itself its dependencies would be compiled twice, since the tests ask naga for more.
# Mesa keeps compiled shaders in the user's cache folder; the tests leave theirs under target/.
test: export MESA_SHADER_CACHE_DIR ?= $(CURDIR)/target/mesa-shader-cache
test:
	@tools/ensure-vulkan.sh
	$(CARGO) test --locked --no-run
	@tools/ensure-vulkan.sh $(TARGET)/debug/scumble
	$(CARGO) test --locked

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

bench:
	@tools/ensure-vulkan.sh
	$(CARGO) run --release --locked -- bench

goldens:
	@test -x "$(PYTHON)" || { echo "$(PYTHON) is missing: set the environment up as tools/README.md says, or give PYTHON=..." >&2; exit 1; }
	$(PYTHON) tools/goldens/make.py
	$(PYTHON) tools/goldens/kernels.py
	$(PYTHON) tools/goldens/dalle.py
	$(PYTHON) tools/goldens/unets.py
	$(PYTHON) tools/goldens/imagen.py
	$(PYTHON) tools/goldens/karlo.py
	$(PYTHON) tools/goldens/kandinsky.py
	$(PYTHON) tools/goldens/upscale.py
	$(PYTHON) tools/goldens/t5.py
	$(PYTHON) tools/goldens/esrgan.py
	$(PYTHON) tools/goldens/resample.py
	$(PYTHON) tools/goldens/evaluate.py
	$(PYTHON) tools/goldens/clip.py
