"""The wheel: a user's project is type-checked against what it ships."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
from decimal import Decimal
from typing import assert_type

from eventsync import Bus, Field, IdentityMap, Record, Store, StoreRegistry, Worker, location
from eventsync.stores.memory import MemoryAccessor


class Product(Record):
    id: int = Field(key=True)
    price: Decimal = Decimal(0)


bus = Bus("sqlite:///broker.db")
shop = Store("shop", MemoryAccessor(Product), publisher=bus)
assert_type(shop.name, str)
assert_type(shop.get(Product, 1), Product | None)
product = shop.get(Product, 1)
assert product is not None
assert_type(product.price, Decimal)
assert_type(location("shop"), str)
assert_type(Worker(shop, bus).drain(), int)
with StoreRegistry(shop) as registry:
    registry.add(Product(id=1))
"""

MISUSE = """
from eventsync import Store

shop = Store(1)
shop.nmae
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def checked(wheel, folder, program):
    """Return mypy's verdict on a program in an environment that has the wheel installed."""
    env = folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(env)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The dependencies are those of this environment; its own eventsync is not among them,
    # because an editable installation is a .pth file, which does not count in a nested path.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "program.py", "--config-file", ""]
    command += ["--python-executable", str(env / "bin" / "python"), "--cache-dir", "cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_wheel_is_marked_as_typed(wheel):
    """The wheel ships the marker, the stub of the public names, scripts and sample projects."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"eventsync/py.typed", "eventsync/__init__.pyi"} <= names
    assert any(name.endswith(".lua") for name in names)
    assert "eventsync/cli/starter/records.py.txt" in names
    assert not any(name.startswith(("tests/", "workers/")) for name in names)


@pytest.mark.slow
def test_a_users_program_is_type_checked(wheel, tmp_path):
    """mypy in strict mode knows the types of the public names."""
    assert "Success: no issues found" in checked(wheel, tmp_path, PROGRAM)


@pytest.mark.slow
def test_a_users_mistakes_are_found(wheel, tmp_path):
    """A wrong argument and a misspelt attribute are errors, so the types are not ``Any``."""
    said = checked(wheel, tmp_path, MISUSE)
    assert '"Store" has incompatible type "int"' in said
    assert '"Store" has no attribute "nmae"' in said
