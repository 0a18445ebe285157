"""`python -m hf_dfml.cli ...` is `hf-dfml ...`; `accelerate launch -m hf_dfml.cli train ...` starts several of it."""

from hf_dfml.cli import main

if __name__ == "__main__":
    main()
