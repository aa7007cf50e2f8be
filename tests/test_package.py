"""The package as a whole."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import sparring


def test_the_package_knows_its_version():
    assert sparring.__version__ == version("sparring")
    with pytest.raises(AttributeError, match="nothing"):
        _ = sparring.nothing


def test_importing_it_is_immediate():
    code = "import sys, sparring; sparring.__version__; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
