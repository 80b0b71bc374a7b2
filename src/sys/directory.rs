//! Directories, and files by their names in an open directory.
//!
//! A name in an open directory means the same file whatever happens to the path that led there.
//! Symbolic links are never followed here.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use super::{Errno, checked, errno, recording, stat_at};

/// Opens the directory at `path`, symbolic links followed; closed on `exec`.
///
/// # Errors
/// As `open(2)`: `ENOTDIR` where it is something else.
pub fn open_directory(path: &CStr) -> Result<OwnedFd, Errno> {
    directory(libc::AT_FDCWD, path, 0)
}

/// Opens the directory called `name` in another one; closed on `exec`.
///
/// # Errors
/// As `openat(2)`: `ENOTDIR` where it is something else, a symbolic link among them.
pub fn open_directory_at(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    directory(parent.as_raw_fd(), name, libc::O_NOFOLLOW)
}

fn directory(parent: libc::c_int, name: &CStr, more: libc::c_int) -> Result<OwnedFd, Errno> {
    let bits = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC | more;
    // SAFETY: the name ends in NUL by its type; the parent is open for the call.
    let fd = checked(|| unsafe { libc::openat(parent, name.as_ptr(), bits) })?;
    // SAFETY: the call returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens the file called `name` in a directory for reading and writing; with `create` it is made,
/// with mode 0600 less the umask, where it does not exist. Closed on `exec`.
///
/// # Errors
/// As `openat(2)`: `ELOOP` where it is a symbolic link.
pub fn open_at(parent: BorrowedFd<'_>, name: &CStr, create: bool) -> Result<OwnedFd, Errno> {
    let create = if create { libc::O_CREAT } else { 0 };
    file(parent, name, libc::O_RDWR | create)
}

/// Makes a file called `name` in a directory, with mode 0600 less the umask, and opens it for reading
/// and writing. Closed on `exec`.
///
/// # Errors
/// As `openat(2)`: `EEXIST` where anything has the name, a symbolic link among them.
pub fn create_at(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    file(parent, name, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL)
}

/// Opens the file called `name` in a directory for reading only. Closed on `exec`.
///
/// # Errors
/// As [`open_at`].
pub fn open_to_read_at(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    file(parent, name, libc::O_RDONLY)
}

fn file(parent: BorrowedFd<'_>, name: &CStr, bits: libc::c_int) -> Result<OwnedFd, Errno> {
    // O_NONBLOCK: opening what turns out to be a FIFO must not wait for its other end.
    let bits = bits | libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mode: libc::c_uint = 0o600;
    let may_create = bits & libc::O_CREAT != 0 && recording::is_on();
    let is_new = may_create && stat_at(parent, name).is_err();
    // SAFETY: the name ends in NUL by its type; the mode is given, as `O_CREAT` demands; the
    // parent is open for the call.
    let fd = checked(|| unsafe { libc::openat(parent.as_raw_fd(), name.as_ptr(), bits, mode) })?;
    if is_new {
        recording::created(parent, name);
    }
    // SAFETY: the call returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a directory, with mode 0700 less the umask.
///
/// # Errors
/// As `mkdirat(2)`: `EEXIST` where something has the name already.
pub fn make_directory_at(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    // SAFETY: the name ends in NUL by its type; the parent is open for the call.
    checked(|| unsafe { libc::mkdirat(parent.as_raw_fd(), name.as_ptr(), 0o700) })?;
    recording::created(parent, name);
    Ok(())
}

/// Gives the file called `from` the name `to` in the same directory; what had that name goes, in
/// one step.
///
/// # Errors
/// As `renameat(2)`.
pub fn rename_at(parent: BorrowedFd<'_>, from: &CStr, to: &CStr) -> Result<(), Errno> {
    move_at(parent, from, parent, to)
}

/// Gives what is called `from` in one directory the name `to` in another one, on the same file
/// system. Anything but a directory that is not empty goes.
///
/// # Errors
/// As `renameat(2)`.
pub fn move_at(
    parent: BorrowedFd<'_>,
    from: &CStr,
    target: BorrowedFd<'_>,
    to: &CStr,
) -> Result<(), Errno> {
    move_with(parent, from, target, to, 0)?;
    recording::renamed((parent, from), (target, to));
    Ok(())
}

/// Gives two things in two directories each other's name, in one step.
///
/// KERNEL: renameat2 since 3.15; not every file system knows the flag.
///
/// # Errors
/// As `renameat2(2)`: `EINVAL` where the file system cannot.
pub fn exchange_at(
    parent: BorrowedFd<'_>,
    name: &CStr,
    other_parent: BorrowedFd<'_>,
    other: &CStr,
) -> Result<(), Errno> {
    move_with(parent, name, other_parent, other, libc::RENAME_EXCHANGE)?;
    recording::exchanged((parent, name), (other_parent, other));
    Ok(())
}

fn move_with(
    parent: BorrowedFd<'_>,
    from: &CStr,
    target: BorrowedFd<'_>,
    to: &CStr,
    flags: libc::c_uint,
) -> Result<(), Errno> {
    let (parent, target) = (parent.as_raw_fd(), target.as_raw_fd());
    // SAFETY: the names end in NUL by their type; the directories are open for the call.
    checked(|| unsafe { libc::renameat2(parent, from.as_ptr(), target, to.as_ptr(), flags) })
        .map(drop)
}

/// Removes the empty directory called `name`.
///
/// # Errors
/// As `unlinkat(2)` with `AT_REMOVEDIR`: `ENOTEMPTY`; `ENOTDIR` where it is something else.
pub fn remove_directory_at(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    unlink_with(parent, name, libc::AT_REMOVEDIR)
}

/// Takes the name `name` away from a file.
///
/// # Errors
/// As `unlinkat(2)`: `EISDIR` where it is a directory.
pub fn unlink_at(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    unlink_with(parent, name, 0)
}

fn unlink_with(parent: BorrowedFd<'_>, name: &CStr, flags: libc::c_int) -> Result<(), Errno> {
    let status = recording::is_on().then(|| stat_at(parent, name).ok());
    // SAFETY: the name ends in NUL by its type; the parent is open for the call.
    checked(|| unsafe { libc::unlinkat(parent.as_raw_fd(), name.as_ptr(), flags) })?;
    recording::removed(parent, name, status.flatten().map(|status| status.identity));
    Ok(())
}

/// The names in a directory, without `.` and `..`, in no order.
///
/// # Errors
/// As `openat(2)` and `readdir(3)`.
pub fn names_in(directory: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    // A descriptor of its own: reading moves its position, and the stream closes it.
    let own = open_directory_at(directory, c".")?;
    // SAFETY: the descriptor is open and a directory.
    let stream = unsafe { libc::fdopendir(own.as_raw_fd()) };
    if stream.is_null() {
        return Err(errno());
    }
    // The stream owns the descriptor from now on.
    let _ = own.into_raw_fd();
    let mut names = Vec::new();
    let outcome = loop {
        // SAFETY: `readdir` tells the end from a failure by errno, which it never sets to zero.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: the stream is open, and only this thread knows it.
        let entry = unsafe { libc::readdir(stream) };
        if entry.is_null() {
            break match errno() {
                0 => Ok(()),
                errno => Err(errno),
            };
        }
        // SAFETY: `entry` stays valid until the next call on the stream, and its name ends in NUL.
        let name = unsafe { CStr::from_ptr((&raw const (*entry).d_name).cast()) };
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    };
    // SAFETY: the stream is open, and not used again.
    unsafe { libc::closedir(stream) };
    outcome.map(|()| names)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn files_are_made_renamed_listed_and_removed_by_name() {
        let place = tempfile::tempdir().unwrap();
        let path = CString::new(place.path().as_os_str().as_bytes()).unwrap();
        let top = open_directory(&path).unwrap();
        make_directory_at(top.as_fd(), c"inner").unwrap();
        assert_eq!(make_directory_at(top.as_fd(), c"inner"), Err(libc::EEXIST));
        let mode = place.path().join("inner").metadata().unwrap().mode();
        assert_eq!(mode & 0o077, 0);

        let inner = open_directory_at(top.as_fd(), c"inner").unwrap();
        assert_eq!(names_in(inner.as_fd()), Ok(Vec::new()));
        assert_eq!(
            open_at(inner.as_fd(), c"a", false).err(),
            Some(libc::ENOENT)
        );
        create_at(inner.as_fd(), c"a").unwrap();
        assert_eq!(create_at(inner.as_fd(), c"a").err(), Some(libc::EEXIST));
        open_at(inner.as_fd(), c"b", true).unwrap();
        rename_at(inner.as_fd(), c"a", c"b").unwrap();
        assert_eq!(names_in(inner.as_fd()), Ok(vec![c"b".to_owned()]));
        // Reading the names does not use the directory up.
        assert_eq!(names_in(inner.as_fd()).unwrap().len(), 1);
        assert_eq!(rename_at(top.as_fd(), c"inner", c"new"), Ok(()));
        make_directory_at(top.as_fd(), c"inner").unwrap();
        assert_eq!(
            rename_at(top.as_fd(), c"inner", c"new"),
            Err(libc::ENOTEMPTY)
        );
        assert_eq!(remove_directory_at(top.as_fd(), c"inner"), Ok(()));
        assert_eq!(
            remove_directory_at(top.as_fd(), c"new"),
            Err(libc::ENOTEMPTY)
        );
        // An empty one is replaced.
        make_directory_at(top.as_fd(), c"inner").unwrap();
        rename_at(top.as_fd(), c"new", c"inner").unwrap();
        rename_at(top.as_fd(), c"inner", c"new").unwrap();
        exchange_at(top.as_fd(), c"new", top.as_fd(), c"other").unwrap_err();
        move_at(inner.as_fd(), c"b", top.as_fd(), c"c").unwrap();
        exchange_at(top.as_fd(), c"c", top.as_fd(), c"new").unwrap();
        assert_eq!(unlink_at(top.as_fd(), c"new"), Ok(()));
        move_at(top.as_fd(), c"c", top.as_fd(), c"inner").unwrap();
        open_at(inner.as_fd(), c"b", true).unwrap();
        unlink_at(inner.as_fd(), c"b").unwrap();
        assert_eq!(unlink_at(inner.as_fd(), c"b"), Err(libc::ENOENT));
        assert_eq!(unlink_at(top.as_fd(), c"inner"), Err(libc::EISDIR));
    }

    #[test]
    fn symbolic_links_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("target"), b"kept").unwrap();
        std::fs::create_dir(place.path().join("real")).unwrap();
        std::os::unix::fs::symlink("target", place.path().join("link")).unwrap();
        std::os::unix::fs::symlink("real", place.path().join("way")).unwrap();
        let path = CString::new(place.path().as_os_str().as_bytes()).unwrap();
        let top = open_directory(&path).unwrap();
        assert_eq!(open_at(top.as_fd(), c"link", true).err(), Some(libc::ELOOP));
        assert_eq!(
            open_directory_at(top.as_fd(), c"way").err(),
            Some(libc::ENOTDIR)
        );
    }
}
