//! The process that serves a mount: every call of the kernel, answered from the tree in memory as
//! the plan says.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

use super::ANSWER;
use super::plan::{Fault, Operation, Plan};
use super::tree::{Content, Node, Tree};

const SECTOR_BYTES: usize = 512;
/// Requests that are served at once.
const THREADS: usize = 4;
/// Every transfer comes here as it was asked for, also of those who did not ask for direct ones.
/// Only so may it be short.
const OPEN_FLAGS: FopenFlags =
    FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
/// The kernel is to remember nothing.
const NOT_KEPT: Duration = Duration::ZERO;

/// What the threads of a mount serve.
struct Served {
    tree: Mutex<Tree>,
    plan: Plan,
}

/// Mounts on `point` and serves until standard input ends, which takes orders for the plan: one in
/// each line, answered by a line each. The first line is that it is mounted, or why it is not.
pub fn serve(point: &Path) {
    // SAFETY: no memory is involved. Without its client this has no reason to live, and where the
    // client was killed its last calls end only with this.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let served = Arc::new(Served {
        tree: Mutex::new(Tree::new()),
        plan: Plan::default(),
    });
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("tensorswap-faults".to_owned())];
    config.n_threads = Some(THREADS);
    let session = match fuser::spawn_mount(Shared(Arc::clone(&served)), point, &config) {
        Ok(session) => session,
        Err(error) => return println!("{ANSWER} {error}"),
    };
    println!("{ANSWER} mounted");
    for order in std::io::stdin().lines() {
        println!("{ANSWER} {}", served.plan.obey(&order.unwrap()));
    }
    let path = CString::new(point.as_os_str().as_bytes()).unwrap();
    // Also where something still has a file open: the end of this process ends that too.
    // SAFETY: a path that ends in a zero byte.
    if unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) } != 0 {
        // Without rights the mount's own way, which asks `fusermount3`.
        let _ = session.umount_and_join();
    }
}

fn attributes(number: u64, node: &Node) -> FileAttr {
    let now = SystemTime::UNIX_EPOCH;
    let kind = match node.content {
        Content::Directory(_) => FileType::Directory,
        Content::File { .. } => FileType::RegularFile,
    };
    // SAFETY: they only tell who calls.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    FileAttr {
        ino: INodeNo(number),
        size: node.len(),
        blocks: node.len().div_ceil(SECTOR_BYTES as u64),
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind,
        perm: node.mode,
        nlink: node.links,
        uid,
        gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Served {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap()
    }

    fn named(&self, number: u64) -> String {
        let mut tree = self.tree();
        tree.node(number)
            .map_or_else(|_| String::new(), |node| node.name.clone())
    }

    /// The fault that strikes now, after its delay if it is one.
    fn strike(&self, name: &str, operation: Operation) -> Option<Fault> {
        let fault = self.plan.next(name, operation);
        if fault == Some(Fault::Delay) {
            std::thread::sleep(Duration::from_micros(self.plan.below(5000) as u64));
        }
        fault
    }

    /// The same where only failing is possible.
    fn fail(&self, name: &str, operation: Operation) -> Result<(), i32> {
        match self.strike(name, operation) {
            Some(Fault::Error(errno)) => Err(errno),
            _ => Ok(()),
        }
    }

    fn attributes_of(&self, number: u64) -> Result<FileAttr, i32> {
        Ok(attributes(number, self.tree().node(number)?))
    }

    fn make(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        content: Content,
    ) -> Result<FileAttr, i32> {
        let number = self.tree().make(parent.0, name, mode, content)?;
        self.attributes_of(number)
    }

    fn write_some(&self, number: u64, offset: u64, data: &[u8]) -> Result<usize, i32> {
        let fault = self.strike(&self.named(number), Operation::Write);
        let sectors = self.plan.below(data.len().div_ceil(SECTOR_BYTES)) * SECTOR_BYTES;
        let mut tree = self.tree();
        match fault {
            Some(Fault::Error(errno)) => {
                tree.write(number, offset, &data[..sectors], sectors)?;
                return Err(errno);
            }
            // At least one sector, or all of what is less than that.
            Some(Fault::Short) => {
                let moved = sectors.max(SECTOR_BYTES).min(data.len());
                tree.write(number, offset, &data[..moved], moved)?;
                return Ok(moved);
            }
            Some(Fault::Lost) => tree.write(number, offset, data, 0)?,
            Some(Fault::Torn) => tree.write(number, offset, data, sectors)?,
            _ => tree.write(number, offset, data, data.len())?,
        }
        Ok(data.len())
    }

    fn read_some(&self, number: u64, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        let fault = self.strike(&self.named(number), Operation::Read);
        let mut tree = self.tree();
        let found = tree.read(number, offset, len, fault == Some(Fault::Stale))?;
        let moved = match fault {
            Some(Fault::Error(errno)) => return Err(errno),
            Some(Fault::Short) => {
                let sectors = self.plan.below(found.len().div_ceil(SECTOR_BYTES));
                (sectors * SECTOR_BYTES).max(SECTOR_BYTES).min(found.len())
            }
            _ => found.len(),
        };
        Ok(found[..moved].to_vec())
    }
}

/// Answers with one kind of reply or an errno.
macro_rules! answer {
    ($reply:ident, $result:expr, $found:pat => $told:expr) => {
        match $result {
            Ok($found) => $told,
            Err(errno) => $reply.error(Errno::from_i32(errno)),
        }
    };
}

/// What the mount's threads and the one that takes orders have in common.
struct Shared(Arc<Served>);

impl std::ops::Deref for Shared {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.0
    }
}

impl Filesystem for Shared {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.tree().find(parent.0, name);
        let found = found.and_then(|number| self.attributes_of(number));
        answer!(reply, found, found => reply.entry(&NOT_KEPT, &found, Generation(0)));
    }

    fn forget(&self, _: &Request, ino: INodeNo, _: u64) {
        self.tree().forget(ino.0);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.attributes_of(ino.0), found => reply.attr(&NOT_KEPT, &found));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = || {
            if let Some(mode) = mode {
                self.tree().node(ino.0)?.mode = (mode & 0o7777) as u16;
            }
            if let Some(size) = size {
                self.fail(&self.named(ino.0), Operation::SetLength)?;
                self.tree().set_len(ino.0, size)?;
            }
            self.attributes_of(ino.0)
        };
        answer!(reply, set(), found => reply.attr(&NOT_KEPT, &found));
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let made = self.make(parent, name, mode, Content::Directory(BTreeMap::new()));
        answer!(reply, made, made => reply.entry(&NOT_KEPT, &made, Generation(0)));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let empty = Content::File {
            bytes: Vec::new(),
            before: Vec::new(),
        };
        let made = self
            .fail(&name.to_string_lossy(), Operation::Open)
            .and_then(|()| self.make(parent, name, mode, empty));
        answer!(reply, made, made => {
            reply.created(&NOT_KEPT, &made, Generation(0), FileHandle(0), OPEN_FLAGS);
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.fail(&self.named(ino.0), Operation::Open);
        answer!(reply, opened, () => reply.opened(FileHandle(0), OPEN_FLAGS));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.tree().remove(parent.0, name), () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.tree().remove(parent.0, name), () => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let replaces = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        let renamed = self
            .fail(&name.to_string_lossy(), Operation::Rename)
            .and_then(|()| {
                self.tree()
                    .rename((parent.0, name), (newparent.0, newname), replaces)
            });
        answer!(reply, renamed, () => reply.ok());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let found = self.read_some(ino.0, offset, size as usize);
        answer!(reply, found, found => reply.data(&found));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.write_some(ino.0, offset, data);
        answer!(reply, written, len => reply.written(len as u32));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.fail(&self.named(ino.0), Operation::Sync);
        answer!(reply, synced, () => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.fail(&self.named(ino.0), Operation::Sync);
        answer!(reply, synced, () => reply.ok());
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let reserve = || {
            self.fail(&self.named(ino.0), Operation::Reserve)?;
            let mut tree = self.tree();
            let len = tree.node(ino.0)?.len().max(offset + length);
            match mode {
                0 => tree.set_len(ino.0, len),
                libc::FALLOC_FL_KEEP_SIZE => Ok(()),
                _ => Err(libc::EOPNOTSUPP),
            }
        };
        answer!(reply, reserve(), () => reply.ok());
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut tree = self.tree();
        let entries = match tree.directory(ino.0) {
            Ok(entries) => entries.clone(),
            Err(errno) => return reply.error(Errno::from_i32(errno)),
        };
        for (index, (name, number)) in (1..).zip(&entries).skip(offset as usize) {
            let kind = match tree.directory(*number) {
                Ok(_) => FileType::Directory,
                Err(_) => FileType::RegularFile,
            };
            if reply.add(INodeNo(*number), index, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let (blocks, files) = (1 << 20, 1 << 20);
        reply.statfs(blocks, blocks, blocks, files, files, 4096, 255, 4096);
    }
}
