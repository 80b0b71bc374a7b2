"""The package says what the header says."""

import re
from pathlib import Path

import pytest
import tensorswap
from tensorswap import _library, errors, stats
from tensorswap._library import ffi, lib

PACKAGE = Path(tensorswap.__file__).parent

#: Functions of the C interface that a Python program has no use for, and why.
NOT_NEEDED = {
    "tsw_status_name": "an exception carries it",
    "tsw_status_is_retryable": "an exception carries it",
    "tsw_dtype_size": "DType.itemsize",
    "tsw_dtype_name": "DType.name",
}


def test_every_function_of_the_header_is_used(header: str) -> None:
    functions = set(re.findall(r"\b(tsw_\w+)\(", header))
    source = "".join(file.read_text() for file in PACKAGE.glob("*.py") if file.name != "_abi.py")
    used = set(re.findall(r"lib(?:rary)?\.(tsw_\w+)", source))
    assert functions - used == set(NOT_NEEDED)


def test_element_types_are_those_of_the_header(header: str) -> None:
    numbers = {int(n): name for name, n in re.findall(r"Element type: .*\n \*/\n#define TSW_(\w+) (\d+)$", header, re.M)}
    assert {int(dtype): dtype.name for dtype in tensorswap.DType} == numbers
    for dtype in tensorswap.DType:
        assert lib.tsw_dtype_size(dtype) == dtype.itemsize
        assert ffi.string(lib.tsw_dtype_name(dtype)).decode() == dtype.name.lower()
    assert lib.tsw_dtype_name(len(tensorswap.DType)) == ffi.NULL


def test_every_status_of_the_header_has_its_exception(header: str) -> None:
    statuses = {int(number): name for name, number in re.findall(r"#define (TSW_ERR_\w+) \((-\d+)\)", header)}
    assert {status: name for status, name, _class in errors._STATUSES} == statuses
    for status, name in statuses.items():
        error = errors.error_of_status(status, "what happened", 2, "/file")
        assert error.status == status
        assert error.status_name == name or name == "TSW_ERR_NULL_ARGUMENT"
        assert ffi.string(lib.tsw_status_name(status)).decode() == name
        assert error.retryable == bool(lib.tsw_status_is_retryable(status))
        assert (str(error), error.errno, error.path) == ("what happened", 2, "/file")


def test_a_status_of_a_later_version_is_an_error_too() -> None:
    error = errors.error_of_status(-1234, "")
    assert type(error) is tensorswap.Error
    assert (error.status, str(error)) == (-1234, "status -1234")


@pytest.mark.parametrize("kind", stats.C_TYPES, ids=lambda kind: kind.__name__)
def test_figures_have_the_fields_of_the_header(kind: type) -> None:
    fields = [name for name, _field in ffi.typeof(stats.C_TYPES[kind]).fields]
    skipped = fields.index("reserved") + 1
    ours = [{"runs": "count"}.get(name, name) for name in kind._fields]  # type: ignore[attr-defined]
    assert fields[skipped:] == ours
    assert ffi.offsetof(stats.C_TYPES[kind], fields[skipped]) == 8
    assert ffi.sizeof(stats.C_TYPES[kind]) == 8 + 8 * len(ours)


def test_versions_agree(header: str) -> None:
    found = re.search(r'#define TSW_VERSION "(.*)"', header)
    assert found is not None and found.group(1) == tensorswap.__version__
    number = re.search(r"#define TSW_ABI (\d+)", header)
    assert number is not None and int(number.group(1)) == _library.ABI == lib.tsw_abi()
