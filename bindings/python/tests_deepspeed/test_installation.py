"""install and uninstall, the environment variable, and the DeepSpeed above."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1]


def run(program, **environment):
    # Nothing that could compile an operator is in the path.
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PATH": "/nonexistent", **environment},
    )  # fmt: skip
    return found.returncode, found.stdout, found.stderr


def test_deepspeed_loads_our_operators_and_has_its_own_back_afterwards():
    import tensorswap.deepspeed as ours
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from deepspeed.ops.op_builder.builder import OpBuilder

    loaded, compatible = dict(OpBuilder._loaded_ops), AsyncIOBuilder.is_compatible
    module = getattr(sys, "_deepspeed_pin_memory_op_module", None)
    ours.install()
    ours.install()
    try:
        from deepspeed.ops.op_builder.pin_memory import PinMemoryBuilder
        from tensorswap.deepspeed.handle import aio_handle, pin_handle

        assert ours.installed()
        assert AsyncIOBuilder().is_compatible() and PinMemoryBuilder().is_compatible(verbose=True)
        operator = AsyncIOBuilder().load(verbose=False)
        assert operator.aio_handle is aio_handle
        assert {"aio_read", "aio_write", "deepspeed_memcpy"} <= set(dir(operator))
        assert PinMemoryBuilder().load().pin_handle is pin_handle
        from deepspeed.accelerator import get_accelerator

        assert get_accelerator().create_op_builder("AsyncIOBuilder").load() is operator
    finally:
        ours.uninstall()
    ours.uninstall()
    assert not ours.installed()
    assert dict(OpBuilder._loaded_ops) == loaded and AsyncIOBuilder.is_compatible is compatible
    assert getattr(sys, "_deepspeed_pin_memory_op_module", None) is module


def test_nothing_is_compiled():
    """No compiler, no ninja: DeepSpeed's own operator cannot be had, ours can."""
    code, out, err = run("""
        import tensorswap.deepspeed, torch
        tensorswap.deepspeed.install()
        from deepspeed.ops.op_builder import AsyncIOBuilder
        handle = AsyncIOBuilder().load().aio_handle(1 << 20, 8, False, True, 1)
        print(handle.is_pinned(handle.new_cpu_locked_tensor(10, torch.zeros(1))))
        tensorswap.deepspeed.uninstall()
        try:
            AsyncIOBuilder().load()
        except Exception as error:
            print("not without a compiler")
    """, TORCH_EXTENSIONS_DIR="/nonexistent")  # fmt: skip
    assert code == 0 and out.splitlines()[-2:] == ["True", "not without a compiler"], err


def test_deepspeeds_pinned_memory_is_ours():
    code, out, err = run("""
        import tensorswap.deepspeed, torch, gc
        tensorswap.deepspeed.install()
        from deepspeed.accelerator import get_accelerator
        pinned = get_accelerator().pin_memory(torch.arange(5000.0).view(50, 100))
        assert torch.equal(pinned, torch.arange(5000.0).view(50, 100)) and get_accelerator().is_pinned(pinned[3:])
        from tensorswap.deepspeed.handle import aio_handle
        assert aio_handle().is_pinned(pinned[7])
        print(tensorswap.deepspeed.engine().stats().pinned_bytes >= 20000)
        del pinned
        gc.collect()
        print(tensorswap.deepspeed.engine().stats().pinned_bytes)
    """, DS_PIN_MEMORY_BACKEND="native")  # fmt: skip
    assert code == 0 and out.splitlines()[-2:] == ["True", "0"], err


def test_the_section_aio_and_our_keys_decide_about_the_engine():
    program = """
        import tensorswap.deepspeed as ours
        from tensorswap.deepspeed.handle import aio_handle
        ours.install(%s)
        assert ours.engine() is None
        aio_handle(block_size=2 << 20, queue_depth=16, intra_op_parallelism=4)
        aio_handle(block_size=4096, queue_depth=1)
        found = ours.engine().describe()
        print(found["block_bytes"], found["queue_depth"], found["backend"])
    """
    code, out, err = run(program % "")
    assert code == 0 and out.split()[-3:-1] == ["2097152", "64"], err
    code, out, err = run(program % "{'queue_depth': 7, 'backend': 'threads'}")
    assert code == 0 and out.split()[-3:] == ["2097152", "7", "threads"], err


def test_wrong_keys_change_nothing():
    import tensorswap
    import tensorswap.deepspeed as ours

    with pytest.raises(tensorswap.ConfigError, match="queue_depth"):
        ours.install({"queue_dept": 8})
    assert not ours.installed()


@pytest.mark.parametrize("version", ["0.19.3", "0.9.5+cu118", "", "0.19"])
def test_a_deepspeed_that_is_too_old_is_refused_with_one_line(monkeypatch, version):
    import deepspeed
    import tensorswap.deepspeed as ours

    monkeypatch.setattr(deepspeed, "__version__", version)
    with pytest.raises(ours.DeepSpeedVersionError, match="needs DeepSpeed 0.19.4 or later"):
        ours.install()
    assert not ours.installed()


def test_gpudirect_is_refused(installed):
    from deepspeed.ops.op_builder.gds import GDSBuilder

    with pytest.raises(RuntimeError, match="use_gds"):
        GDSBuilder().load()
    installed.uninstall()
    assert "_no_gds" not in repr(GDSBuilder.load)


def test_importing_the_module_imports_neither_torch_nor_deepspeed():
    code, out, err = run("import sys, tensorswap.deepspeed; print({'torch', 'deepspeed'} & set(sys.modules))")
    assert code == 0 and out == "set()\n", err


@pytest.fixture
def site(tmp_path):
    """A folder that Python treats as its site-packages, with what the wheel puts there."""
    for name in ("tensorswap_deepspeed.pth", "_tensorswap_deepspeed.py"):
        shutil.copy(PACKAGE / "autoload" / name, tmp_path)
    return tmp_path


def started(site, program, **environment):
    """A program in a Python that reads the .pth file at its start, as it does in an installation."""
    return run(f"import site; site.addsitedir({str(site)!r})\n" + textwrap.dedent(program), **environment)


def test_the_variable_installs_when_deepspeed_is_imported(site):
    program = """
        import sys
        assert "tensorswap" not in sys.modules and "deepspeed" not in sys.modules
        import deepspeed
        print("ours", "tensorswap.deepspeed" in sys.modules and sys.modules["tensorswap.deepspeed"].installed())
    """
    code, out, err = started(site, program, TENSORSWAP_DEEPSPEED="1")
    assert code == 0 and out.splitlines()[-1] == "ours True", err
    for off in ("", "0", "off"):
        code, out, err = started(site, program, TENSORSWAP_DEEPSPEED=off)
        assert code == 0 and out.splitlines()[-1] == "ours False", err


def test_without_the_variable_nothing_is_loaded(site):
    program = "import sys; print('_tensorswap_deepspeed' in sys.modules, len(sys.meta_path))"
    plain = run("import sys; print(False, len(sys.meta_path))", TENSORSWAP_DEEPSPEED="")[1]
    assert started(site, program, TENSORSWAP_DEEPSPEED="")[1] == plain


def test_the_variable_names_a_configuration(site, tmp_path):
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"queue_depth": 9}))
    program = """
        import deepspeed, tensorswap.deepspeed
        from deepspeed.ops.op_builder import AsyncIOBuilder
        AsyncIOBuilder().load().aio_handle()
        print(tensorswap.deepspeed.engine().describe()["queue_depth"])
    """
    code, out, err = started(site, program, TENSORSWAP_DEEPSPEED="1", TENSORSWAP_DEEPSPEED_CONFIG=str(keys))
    assert code == 0 and out.splitlines()[-1] == "9", err


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TENSORSWAP_DEEPSPEED": "perhaps"}, "TENSORSWAP_DEEPSPEED must be 1 or 0"),
        ({"TENSORSWAP_DEEPSPEED_CONFIG": "/none/keys.json"}, "/none/keys.json cannot be read"),
    ],
)
def test_what_is_wrong_with_the_variable_is_an_error_of_the_import(site, environment, message):
    program = """
        for _ in range(2):
            try:
                import deepspeed
            except ImportError as error:
                print(error)
    """
    code, out, err = started(site, program, **{"TENSORSWAP_DEEPSPEED": "1", **environment})
    assert code == 0 and out.count(message) == 2, err


def test_more_operations_than_the_engine_takes_at_once(tmp_path):
    code, out, err = run(f"""
        import tensorswap.deepspeed, torch
        tensorswap.deepspeed.install({{"tickets_max": 16}})
        from tensorswap.deepspeed.handle import aio_handle
        handle = aio_handle()
        for number in range(200):
            handle.async_pwrite(torch.full((100,), number), "{tmp_path}/%d" % number)
        other = aio_handle()
        handle.async_pread(torch.zeros(1), "{tmp_path}/none")
        try:
            handle.wait()
        except FileNotFoundError:
            print("told")
        for number in range(200):
            handle.async_pread(torch.zeros(100, dtype=torch.int64), "{tmp_path}/%d" % number)
        print(handle.wait())
    """)
    assert code == 0 and out.splitlines()[-2:] == ["told", "200"], err
    assert (tmp_path / "199").stat().st_size == 800


def test_a_second_configuration_is_refused_while_the_engine_runs():
    code, out, err = run("""
        import tensorswap.deepspeed as ours
        from tensorswap.deepspeed.handle import aio_handle
        ours.install({"queue_depth": 40})
        aio_handle()
        ours.install({"queue_depth": 40})
        ours.uninstall()
        ours.install()
        try:
            ours.install({"queue_depth": 41})
        except RuntimeError as error:
            print("configure it before" in str(error), ours.engine().describe()["queue_depth"])
    """)
    assert code == 0 and out.splitlines()[-1] == "True 40", err
