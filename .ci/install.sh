# install PYTHON ARGUMENTS_OF_PIP...: installs with .venv's uv, which does in seconds what takes pip a minute; with pip
# where that fails, because uv does not read pip's settings, such as an index of one's own. `pip install uv` comes first.
# shellcheck shell=bash
install() {
  .venv/bin/uv pip install -q --compile-bytecode --python "$@" || .venv/bin/pip --python "$1" install -q "${@:2}"
}
