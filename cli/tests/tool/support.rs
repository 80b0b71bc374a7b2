//! What the tests share: running the tool, places to run it in, stores to look at.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tensorswap::base::config::Config;
use tensorswap::base::dtype::Dtype;
use tensorswap::io::{Engine, Tensor};
use tensorswap::optimizer::Optimizer;

/// What a run of the tool left.
#[derive(Debug)]
pub(crate) struct Run {
    /// The exit status; `None` where a signal ended it.
    pub(crate) status: Option<i32>,
    pub(crate) out: String,
    pub(crate) errors: String,
}

impl Run {
    fn of(output: std::process::Output) -> Run {
        Run {
            status: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            errors: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// It ended with this status, and said nothing on standard error.
    pub(crate) fn ended(self, status: i32) -> Run {
        assert_eq!(
            (self.status, self.errors.as_str()),
            (Some(status), ""),
            "{}",
            self.out
        );
        self
    }

    /// It ended with this status, printed nothing, and said in one line what is wrong.
    pub(crate) fn refused(self, status: i32, part: &str) {
        assert_eq!(self.status, Some(status), "{self:?}");
        assert_eq!(self.out, "");
        let line = self.errors.strip_suffix('\n').unwrap();
        assert!(
            line.starts_with("tensorswap: ") && !line.contains('\n'),
            "{line}"
        );
        assert!(line.contains(part), "{line}");
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

/// The tool, to be run in no terminal.
pub(crate) fn tool(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tensorswap"));
    command.args(arguments).stdin(Stdio::null());
    command
}

pub(crate) fn run(arguments: &[&str]) -> Run {
    Run::of(tool(arguments).output().unwrap())
}

pub(crate) fn run_in(directory: &Path, arguments: &[&str]) -> Run {
    Run::of(tool(arguments).current_dir(directory).output().unwrap())
}

/// Runs it with something on standard input.
pub(crate) fn run_with_input(arguments: &[&str], input: &str) -> Run {
    let mut command = tool(arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    Run::of(child.wait_with_output().unwrap())
}

/// Runs it as a user who may nothing; `None` where this test has no right to do that.
pub(crate) fn run_as_nobody(arguments: &[&str]) -> Option<Run> {
    const NOBODY: u32 = 65534;
    let is_root = rustix::process::geteuid().is_root();
    let mut command = tool(arguments);
    if is_root {
        command.uid(NOBODY).gid(NOBODY);
    }
    match command.output() {
        Ok(output) => Some(Run::of(output)),
        // The tool itself lies where nobody else may look.
        Err(_) => None,
    }
}

/// A directory on the disk that holds the build, which is a real one.
pub(crate) fn place() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub(crate) fn text_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The names in a directory.
pub(crate) fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Starts the tool, waits until it has files in a directory of its own below `place`, sends a
/// signal, and says which signal ended it.
pub(crate) fn interrupted(arguments: &[&str], place: &Path, signal: i32) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    let mut command = tool(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let is_at_work = || {
        let own = names_in(place)
            .into_iter()
            .find(|name| name.starts_with(".tensorswap-"));
        own.is_some_and(|name| {
            let inner = std::fs::read_dir(place.join(name));
            inner.is_ok_and(|mut entries| entries.next().is_some())
        })
    };
    while !is_at_work() {
        assert_eq!(
            child.try_wait().unwrap(),
            None,
            "it ended before the signal"
        );
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let id = rustix::process::Pid::from_child(&child);
    let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
    rustix::process::kill_process(id, signal).unwrap();
    child.wait().unwrap().signal()
}

/// A command that runs where io_uring is forbidden as container runtimes forbid it.
pub(crate) fn without_io_uring(mut command: Command) -> Run {
    // SAFETY: what runs between fork and exec makes system calls and nothing else.
    unsafe { command.pre_exec(|| forbid(libc::SYS_io_uring_setup, libc::EPERM)) };
    Run::of(command.output().unwrap())
}

/// Makes a system call fail from now on, with seccomp.
fn forbid(call: libc::c_long, errno: i32) -> std::io::Result<()> {
    // KERNEL: seccomp(2); the number of the call comes first in `struct seccomp_data`.
    let statement = |code: u32, k: u32, jf: u8| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        statement(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            call.unsigned_abs() as u32,
            1,
        ),
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | errno.unsigned_abs(),
            0,
        ),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: numbers, and a program that outlives the calls.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ) == 0
    };
    match done {
        true => Ok(()),
        false => Err(std::io::Error::last_os_error()),
    }
}

/// Says why something is not tested here. A failure where `TSW_TEST_REQUIRE`, a list separated by
/// commas, names the feature or says `all`.
pub(crate) fn skip(feature: &str, reason: &str) {
    let required = std::env::var("TSW_TEST_REQUIRE").unwrap_or_default();
    let is_required = required
        .split(',')
        .any(|name| name.trim() == feature || name.trim() == "all");
    assert!(!is_required, "{feature} is required: {reason}");
    println!("skipped ({feature}): {reason}");
}

/// The lengths of the parameters of [`store`], whose ids are 10, 11, …
pub(crate) const NUMELS: [u64; 3] = [5000, 1, 300_000];

/// An optimizer on a store in `place`, with the states `master` (f32), `exp_avg` (f32, bf16 on
/// storage) and three parameters, of which the last one has no name.
pub(crate) fn optimizer(place: &Path) -> Optimizer {
    let mut config = Config::new();
    config.set("path", text_of(place)).unwrap();
    let optimizer = Optimizer::new(&Engine::new(&config).unwrap(), &config).unwrap();
    optimizer
        .add_state("master", Dtype::F32, Dtype::F32)
        .unwrap();
    optimizer
        .add_state("exp_avg", Dtype::F32, Dtype::Bf16)
        .unwrap();
    for (id, numel) in (10..).zip(NUMELS) {
        let name = (id < 12).then(|| format!("layer.{id}"));
        optimizer.add_parameter(id, name.as_deref(), numel).unwrap();
    }
    optimizer
}

/// Gives both states of a parameter values, so that they are not zero.
pub(crate) fn fill(optimizer: &Optimizer, id: u64, value: f32) {
    let numel = NUMELS[id as usize - 10];
    let mut values = vec![value; numel as usize];
    // SAFETY: the values outlive the call, which waits.
    let tensor = unsafe { Tensor::new(values.as_mut_ptr().cast(), numel, Dtype::F32) }.unwrap();
    optimizer.write_state(id, "master", &tensor).unwrap();
    optimizer.write_state(id, "exp_avg", &tensor).unwrap();
}

/// A store that was closed in order: parameters 10 and 11 have values, 12 is zero.
pub(crate) fn store(place: &Path) -> PathBuf {
    let optimizer = optimizer(place);
    fill(&optimizer, 10, 0.5);
    fill(&optimizer, 11, 0.25);
    optimizer.set_user_data(b"seed 7").unwrap();
    optimizer.commit().unwrap();
    place.join("rank0")
}

/// CRC-32C, bit by bit, from its definition.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

/// A parameter of a snapshot: its id, its elements, and what to fill them with; a hole, and no
/// checksums, for none.
pub(crate) type Saved = (u64, u64, Option<u8>);

/// Makes a snapshot as `docs/FORMAT.md` describes it, with the states of [`optimizer`].
pub(crate) fn snapshot(directory: &Path, step: u64, user_data: &[u8], saved: &[Saved]) {
    std::fs::create_dir_all(directory).unwrap();
    let data = std::fs::File::create(directory.join("data")).unwrap();
    let mut end = 0;
    let parameters: Vec<Value> = saved
        .iter()
        .map(|(id, numel, fill)| {
            let states = [4, 2].map(|size| {
                let (offset, len) = (end, numel * size);
                end += len.next_multiple_of(4096);
                let checksum = fill.map(|fill| {
                    let bytes: Vec<u8> = (0..len).map(|at| fill ^ (at % 249) as u8).collect();
                    data.write_all_at(&bytes, offset).unwrap();
                    crc32c(&bytes)
                });
                json!([offset, checksum])
            });
            json!({"id": id, "name": format!("layer.{id}"), "numel": numel, "states": states})
        })
        .collect();
    data.set_len(end).unwrap();
    let user_data: String = user_data.iter().map(|byte| format!("{byte:02x}")).collect();
    let manifest = json!({
        "format": "tensorswap-snapshot",
        "version": 1,
        "step": step,
        "data_bytes": end,
        "user_data": user_data,
        "states": [
            {"name": "master", "dtype": "f32", "disk_dtype": "f32"},
            {"name": "exp_avg", "dtype": "f32", "disk_dtype": "bf16"},
        ],
        "parameters": parameters,
    });
    let text = manifest.to_string();
    let checksum = format!("{:08x}\n", crc32c(text.as_bytes()));
    std::fs::write(directory.join("manifest.json"), text).unwrap();
    std::fs::write(directory.join("manifest.json.crc32c"), checksum).unwrap();
}

/// Snapshots of two ranks: parameter 7 has 1501 elements, 9 has one, on rank 0.
pub(crate) fn snapshots(directory: &Path) {
    let first = [(7, 751, Some(1)), (9, 1, Some(2))];
    snapshot(&directory.join("rank0"), 5, b"seed 7", &first);
    snapshot(&directory.join("rank1"), 5, b"seed 8", &[(7, 750, Some(3))]);
}

/// A file system in memory that is read-only, mounted as long as this lives.
pub(crate) struct ReadOnly(PathBuf);

impl ReadOnly {
    /// Mounts it at `point`, with what `prepare` puts there; `None` where that is not permitted.
    pub(crate) fn new(point: &Path, prepare: impl FnOnce(&Path)) -> Option<ReadOnly> {
        let mount = |arguments: &[&str]| {
            let mut command = Command::new("mount");
            let output = command.args(arguments).arg(point).output();
            output.is_ok_and(|output| output.status.success())
        };
        if !mount(&["-t", "tmpfs", "tmpfs"]) {
            return None;
        }
        let mounted = ReadOnly(point.to_owned());
        prepare(point);
        // Threads of an engine that was just closed may have a file open for a moment more.
        let is_read_only = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            mount(&["-o", "remount,ro"])
        });
        assert!(is_read_only);
        Some(mounted)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
