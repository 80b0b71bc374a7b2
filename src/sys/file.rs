//! Files: open, ask, reserve, transfer.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{Errno, checked, recording};
use crate::memory::MemoryRange;

/// What tells two files apart, whatever paths lead to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIdentity {
    /// The device that holds the file system.
    pub device: u64,
    /// The number of the file in its file system.
    pub inode: u64,
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link, where none is followed.
    Link,
    /// A device, pipe or socket.
    Other,
}

/// What `stat` tells about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStatus {
    /// Device and inode.
    pub identity: FileIdentity,
    /// What it is.
    pub kind: FileKind,
    /// Its length.
    pub len_bytes: u64,
    /// The size of a transfer that the file system likes best.
    pub block_size_bytes: u64,
}

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenFlags {
    /// Open for reading.
    pub read: bool,
    /// Open for writing.
    pub write: bool,
    /// Create the file, with mode 0600 less the umask, where it does not exist.
    pub create: bool,
    /// Transfer without the page cache (`O_DIRECT`).
    pub direct: bool,
}

/// What direct I/O on a file demands, as the kernel says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DioAlignment {
    /// Addresses in memory must be multiples of this.
    pub memory_bytes: u32,
    /// Offsets and lengths must be multiples of this; 0: no direct I/O on this file.
    pub offset_bytes: u32,
}

impl DioAlignment {
    /// Whether the file can be transferred directly at all.
    #[must_use]
    pub const fn is_supported(self) -> bool {
        self.memory_bytes != 0 && self.offset_bytes != 0
    }
}

/// Identity, kind and length of what `path` leads to, symbolic links followed.
///
/// # Errors
/// As `stat(2)`.
pub fn stat_identity(path: &CStr) -> Result<FileStatus, Errno> {
    let mut status = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the path ends in NUL by its type; `status` has room for one `struct stat`.
    checked(|| unsafe { libc::stat(path.as_ptr(), status.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so the kernel filled the structure (zeroes are valid as well).
    Ok(status_of(&unsafe { status.assume_init() }))
}

/// Identity, kind and length of an open file.
///
/// # Errors
/// As `fstat(2)`.
pub fn fstat(file: BorrowedFd<'_>) -> Result<FileStatus, Errno> {
    let mut status = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the descriptor is open for the call; `status` has room for one `struct stat`.
    checked(|| unsafe { libc::fstat(file.as_raw_fd(), status.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so the kernel filled the structure (zeroes are valid as well).
    Ok(status_of(&unsafe { status.assume_init() }))
}

/// Identity, kind and length of what is called `name` in a directory; of a symbolic link, its own.
///
/// # Errors
/// As `fstatat(2)`.
pub fn stat_at(parent: BorrowedFd<'_>, name: &CStr) -> Result<FileStatus, Errno> {
    let mut status = MaybeUninit::<libc::stat>::zeroed();
    let (parent, flags) = (parent.as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW);
    // SAFETY: the name ends in NUL by its type; the parent is open for the call; `status` has room
    // for one `struct stat`.
    checked(|| unsafe { libc::fstatat(parent, name.as_ptr(), status.as_mut_ptr(), flags) })?;
    // SAFETY: the call succeeded, so the kernel filled the structure (zeroes are valid as well).
    Ok(status_of(&unsafe { status.assume_init() }))
}

fn status_of(status: &libc::stat) -> FileStatus {
    FileStatus {
        identity: FileIdentity {
            device: status.st_dev,
            inode: status.st_ino,
        },
        kind: match status.st_mode & libc::S_IFMT {
            libc::S_IFREG => FileKind::Regular,
            libc::S_IFDIR => FileKind::Directory,
            libc::S_IFLNK => FileKind::Link,
            _ => FileKind::Other,
        },
        // Neither is ever negative.
        len_bytes: u64::try_from(status.st_size).unwrap_or(0),
        block_size_bytes: u64::try_from(status.st_blksize).unwrap_or(0),
    }
}

/// Opens a file; the descriptor is closed on `exec`.
///
/// # Errors
/// As `open(2)`: `EINVAL` where the file system knows no direct I/O, or where neither reading nor
/// writing is asked for.
pub fn open(path: &CStr, flags: OpenFlags) -> Result<OwnedFd, Errno> {
    let mut bits = match (flags.read, flags.write) {
        (true, false) => libc::O_RDONLY,
        (false, true) => libc::O_WRONLY,
        (true, true) => libc::O_RDWR,
        (false, false) => return Err(libc::EINVAL),
    };
    bits |= libc::O_CLOEXEC;
    if flags.create {
        bits |= libc::O_CREAT;
    }
    if flags.direct {
        bits |= libc::O_DIRECT;
    }
    let mode: libc::c_uint = 0o600;
    // SAFETY: the path ends in NUL by its type; the mode is given, as `O_CREAT` demands.
    let fd = checked(|| unsafe { libc::open(path.as_ptr(), bits, mode) })?;
    // SAFETY: the call returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Asks the file what direct I/O on it demands; `None` where the kernel or the file system does
/// not say, and only a real transfer can tell.
///
/// KERNEL: `STATX_DIOALIGN` since 6.1, on ext4, xfs, f2fs and block devices.
///
/// # Errors
/// As `statx(2)`, less `ENOSYS`, which is `None`.
pub fn statx_dio(file: BorrowedFd<'_>) -> Result<Option<DioAlignment>, Errno> {
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty string that `AT_EMPTY_PATH` permits, the descriptor is open
    // for the call, and `status` has room for one `struct statx`.
    let done = checked(|| unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            status.as_mut_ptr(),
        )
    });
    match done {
        Err(libc::ENOSYS) => return Ok(None),
        other => other?,
    };
    // SAFETY: the call succeeded, so the kernel filled the structure (zeroes are valid as well).
    let status = unsafe { status.assume_init() };
    Ok(
        (status.stx_mask & libc::STATX_DIOALIGN != 0).then_some(DioAlignment {
            memory_bytes: status.stx_dio_mem_align,
            offset_bytes: status.stx_dio_offset_align,
        }),
    )
}

/// Sets the length of a file: cuts it, or extends it by a hole.
///
/// # Errors
/// As `ftruncate(2)`; `EFBIG` for a length that no file can have.
pub fn set_len(file: BorrowedFd<'_>, len_bytes: u64) -> Result<(), Errno> {
    let len = offset_of(len_bytes)?;
    // SAFETY: the descriptor is open for the call; no memory is involved.
    checked(|| unsafe { libc::ftruncate(file.as_raw_fd(), len) })?;
    recording::resized(file);
    Ok(())
}

/// Reserves blocks for a range of a file and extends the file over it (`fallocate`, mode 0).
///
/// # Errors
/// As `fallocate(2)`: `EOPNOTSUPP` where the file system cannot, `ENOSPC` where it is full,
/// `EINVAL` for a length of zero, `EFBIG` for a range that no file can have.
pub fn allocate(file: BorrowedFd<'_>, offset_bytes: u64, len_bytes: u64) -> Result<(), Errno> {
    let (offset, len) = (offset_of(offset_bytes)?, offset_of(len_bytes)?);
    // SAFETY: the descriptor is open for the call; no memory is involved.
    checked(|| unsafe { libc::fallocate(file.as_raw_fd(), 0, offset, len) })?;
    recording::resized(file);
    Ok(())
}

/// Reserves blocks for a range of a file and leaves its length as it is (`FALLOC_FL_KEEP_SIZE`).
///
/// # Errors
/// As [`allocate`].
pub fn allocate_keeping_len(
    file: BorrowedFd<'_>,
    offset_bytes: u64,
    len_bytes: u64,
) -> Result<(), Errno> {
    let (offset, len) = (offset_of(offset_bytes)?, offset_of(len_bytes)?);
    let mode = libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the descriptor is open for the call; no memory is involved.
    checked(|| unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }).map(drop)
}

/// Lets a range of one file share the blocks of a range of another (`FICLONERANGE`), which copies
/// without moving a byte. Offsets and length are multiples of the file system's block size.
///
/// # Errors
/// As `ioctl_ficlonerange(2)`: `EXDEV` across file systems, `EOPNOTSUPP` where the file system
/// cannot, `EINVAL` for odd ranges.
pub fn clone_range(
    from: BorrowedFd<'_>,
    from_offset_bytes: u64,
    len_bytes: u64,
    to: BorrowedFd<'_>,
    to_offset_bytes: u64,
) -> Result<(), Errno> {
    let range = libc::file_clone_range {
        src_fd: i64::from(from.as_raw_fd()),
        src_offset: from_offset_bytes,
        src_length: len_bytes,
        dest_offset: to_offset_bytes,
    };
    // SAFETY: the request reads the one structure that it is given, which outlives the call; both
    // descriptors are open for it.
    checked(|| unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const range) })?;
    recording::cloned(to, to_offset_bytes, len_bytes);
    Ok(())
}

/// Turns direct I/O off for an open file, and for every duplicate of its descriptor.
///
/// # Errors
/// As `fcntl(2)` with `F_GETFL` and `F_SETFL`.
pub fn clear_direct(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the descriptor is open for the call; no memory is involved.
    let flags = checked(|| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
    let flags = flags & !libc::O_DIRECT;
    // SAFETY: as above.
    checked(|| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// Reads at most the length of `into` from `offset_bytes`; returns how much was read, 0 at the
/// end of the file. May read less than asked for.
///
/// # Errors
/// As `pread(2)`.
pub fn pread(file: BorrowedFd<'_>, into: MemoryRange, offset_bytes: u64) -> Result<usize, Errno> {
    let offset = offset_of(offset_bytes)?;
    // SAFETY: whoever made the range vouches that it is writable until its last use; the kernel
    // writes at most its length. The descriptor is open for the call.
    let done = checked(|| unsafe {
        libc::pread(
            file.as_raw_fd(),
            into.as_mut_ptr().cast(),
            into.len(),
            offset,
        )
    })?;
    // Not negative: `checked` saw to that.
    usize::try_from(done).map_err(|_| libc::EIO)
}

/// Writes at most the length of `from` at `offset_bytes`; returns how much was written. May write
/// less than asked for.
///
/// # Errors
/// As `pwrite(2)`.
pub fn pwrite(file: BorrowedFd<'_>, from: MemoryRange, offset_bytes: u64) -> Result<usize, Errno> {
    let offset = offset_of(offset_bytes)?;
    // SAFETY: whoever made the range vouches that it is readable until its last use; the kernel
    // reads at most its length. The descriptor is open for the call.
    let done = checked(|| unsafe {
        libc::pwrite(
            file.as_raw_fd(),
            from.as_mut_ptr().cast_const().cast(),
            from.len(),
            offset,
        )
    })?;
    // Not negative: `checked` saw to that.
    let done_bytes = usize::try_from(done).map_err(|_| libc::EIO)?;
    recording::written(file, from, done_bytes, offset_bytes);
    Ok(done_bytes)
}

/// As [`pread`], into memory that is borrowed.
///
/// # Errors
/// As `pread(2)`.
pub fn read_at(file: BorrowedFd<'_>, into: &mut [u8], offset_bytes: u64) -> Result<usize, Errno> {
    // SAFETY: the slice is exclusive and outlives the call, the range's only use.
    let into = unsafe { MemoryRange::new(into.as_mut_ptr(), into.len()) };
    pread(file, into, offset_bytes)
}

/// As [`pwrite`], from memory that is borrowed.
///
/// # Errors
/// As `pwrite(2)`.
pub fn write_at(file: BorrowedFd<'_>, from: &[u8], offset_bytes: u64) -> Result<usize, Errno> {
    // SAFETY: the slice outlives the call, the range's only use, which reads it.
    let from = unsafe { MemoryRange::new(from.as_ptr().cast_mut(), from.len()) };
    pwrite(file, from, offset_bytes)
}

/// A length or offset as the kernel takes it: signed.
fn offset_of(bytes: u64) -> Result<libc::off_t, Errno> {
    libc::off_t::try_from(bytes).map_err(|_| libc::EFBIG)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use super::*;

    const BOTH: OpenFlags = OpenFlags {
        read: true,
        write: true,
        create: true,
        direct: false,
    };

    fn path_in(directory: &Path, name: &str) -> CString {
        CString::new(directory.join(name).as_os_str().as_bytes()).unwrap()
    }

    fn range_of(bytes: &mut [u8]) -> MemoryRange {
        // SAFETY: each test keeps the slice alive and untouched until it is done with the range.
        unsafe { MemoryRange::new(bytes.as_mut_ptr(), bytes.len()) }
    }

    #[test]
    fn a_file_is_created_private_written_read_and_identified() {
        let directory = tempfile::tempdir().unwrap();
        let path = path_in(directory.path(), "a");
        assert_eq!(stat_identity(&path), Err(libc::ENOENT));
        let file = open(&path, BOTH).unwrap();

        let mut written = *b"0123456789";
        assert_eq!(pwrite(file.as_fd(), range_of(&mut written), 5), Ok(10));
        let mut read = [0xff_u8; 20];
        assert_eq!(pread(file.as_fd(), range_of(&mut read), 0), Ok(15));
        assert_eq!(&read[..15], b"\0\0\0\0\x000123456789");
        assert_eq!(read[15..], [0xff; 5]);
        assert_eq!(pread(file.as_fd(), range_of(&mut read), 15), Ok(0));

        let status = fstat(file.as_fd()).unwrap();
        assert_eq!((status.kind, status.len_bytes), (FileKind::Regular, 15));
        assert!(status.block_size_bytes > 0);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path().join("a"), &link).unwrap();
        let through_link = path_in(directory.path(), "link");
        assert_eq!(stat_identity(&through_link), Ok(status));
        let mode = std::os::unix::fs::MetadataExt::mode(&link.metadata().unwrap());
        assert_eq!(mode & 0o177, 0);
        let top = super::super::open_directory(&path_in(directory.path(), "")).unwrap();
        assert_eq!(stat_at(top.as_fd(), c"a"), Ok(status));
        assert_eq!(
            stat_at(top.as_fd(), c"link").map(|status| status.kind),
            Ok(FileKind::Link)
        );
        assert_eq!(stat_at(top.as_fd(), c"b"), Err(libc::ENOENT));
        let above = path_in(directory.path(), "");
        assert_eq!(stat_identity(&above).unwrap().kind, FileKind::Directory);
    }

    #[test]
    fn lengths_beyond_what_a_file_can_have_are_refused_without_wrapping() {
        let directory = tempfile::tempdir().unwrap();
        let file = open(&path_in(directory.path(), "a"), BOTH).unwrap();
        assert_eq!(set_len(file.as_fd(), u64::MAX), Err(libc::EFBIG));
        assert_eq!(allocate(file.as_fd(), u64::MAX, 1), Err(libc::EFBIG));
        assert_eq!(allocate(file.as_fd(), 0, 0), Err(libc::EINVAL));
        let mut byte = [0];
        assert_eq!(
            pread(file.as_fd(), range_of(&mut byte), u64::MAX),
            Err(libc::EFBIG)
        );
        set_len(file.as_fd(), 12345).unwrap();
        assert_eq!(fstat(file.as_fd()).unwrap().len_bytes, 12345);
        assert_eq!(
            open(&path_in(directory.path(), "a"), OpenFlags::default()).err(),
            Some(libc::EINVAL)
        );
    }

    #[test]
    fn direct_is_cleared_and_the_alignment_is_plausible_where_it_is_told() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let path = path_in(directory.path(), "a");
        let file = match open(
            &path,
            OpenFlags {
                direct: true,
                ..BOTH
            },
        ) {
            Ok(file) => file,
            // A file system without direct I/O: nothing to test here.
            Err(errno) => return assert_eq!(errno, libc::EINVAL),
        };
        if let Some(told) = statx_dio(file.as_fd()).unwrap() {
            assert!(!told.is_supported() || told.offset_bytes.is_power_of_two());
        }
        clear_direct(file.as_fd()).unwrap();
        let mut odd = *b"odd";
        assert_eq!(pwrite(file.as_fd(), range_of(&mut odd), 1), Ok(3));
    }

    #[test]
    fn borrowed_memory_is_written_and_read_and_blocks_beyond_the_end_change_no_length() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let file = open(&path_in(directory.path(), "a"), BOTH).unwrap();
        assert_eq!(write_at(file.as_fd(), b"abc", 2), Ok(3));
        match allocate_keeping_len(file.as_fd(), 0, 1 << 20) {
            Ok(()) | Err(libc::EOPNOTSUPP) => {}
            Err(errno) => panic!("{errno}"),
        }
        assert_eq!(fstat(file.as_fd()).unwrap().len_bytes, 5);
        let mut read = [1; 8];
        assert_eq!(read_at(file.as_fd(), &mut read, 1), Ok(4));
        assert_eq!(&read, b"\0abc\x01\x01\x01\x01");
    }

    #[test]
    fn a_range_is_cloned_whole_or_not_at_all() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let [from, to] =
            ["a", "b"].map(|name| open(&path_in(directory.path(), name), BOTH).unwrap());
        let bytes: Vec<u8> = (0..8192_u32).map(|at| at as u8).collect();
        assert_eq!(write_at(from.as_fd(), &bytes, 0), Ok(8192));
        let cloned = clone_range(from.as_fd(), 4096, 4096, to.as_fd(), 8192);
        let len_bytes = fstat(to.as_fd()).unwrap().len_bytes;
        match cloned {
            Ok(()) => assert_eq!(len_bytes, 12288),
            // Most file systems cannot.
            Err(errno) => assert_eq!((errno, len_bytes), (libc::EOPNOTSUPP, 0)),
        }
    }

    #[test]
    fn reserved_blocks_extend_the_file() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let file = open(&path_in(directory.path(), "a"), BOTH).unwrap();
        match allocate(file.as_fd(), 4096, 8192) {
            Ok(()) => assert_eq!(fstat(file.as_fd()).unwrap().len_bytes, 12288),
            Err(errno) => assert_eq!(errno, libc::EOPNOTSUPP),
        }
    }
}
