"""Adversarial training in PyTorch: train against an adversary, measure how robust the result is, explain why.

The public names stand in `__init__.pyi`. Each is imported from its room when it is first used, so `import sparring`
is immediate.
"""

import lazy_loader

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name == "__version__":  # read only when it is asked for, since that takes longer than the rest
        from importlib.metadata import version

        return version(__name__)
    return _attribute(name)
