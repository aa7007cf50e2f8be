"""Adversarial training in PyTorch: train against an adversary, measure how robust the result is, explain why.

The public names stand in `__init__.pyi`. Each is imported from its room when it is first used, so `import sparring`
is immediate.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
