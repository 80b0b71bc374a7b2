//! The one error type, and the status numbers that C sees.
//!
//! Variants are cut by what a caller can do about them. Failures of I/O carry operation, path,
//! offset and errno; nothing ever matches on the text of a message.

use std::fmt;

/// What every fallible function of the library returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! statuses {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// The outcome of a call as a number: 0 is success, positive is information, negative is
        /// an error. The numbers are frozen for ever.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum Status { $($(#[$doc])* $variant = $number),* }

        impl Status {
            /// Every status.
            pub const ALL: &'static [Status] = &[$(Status::$variant),*];

            /// The name in the C header.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Status::$variant => $name),* }
            }
        }
    };
}

statuses! {
    /// Success.
    Ok = 0, "TSW_OK";
    /// No more items.
    End = 1, "TSW_END";
    /// A pointer that must not be NULL is NULL.
    NullArgument = -1, "TSW_ERR_NULL_ARGUMENT";
    /// An argument is outside of what the function accepts.
    InvalidArgument = -2, "TSW_ERR_INVALID_ARGUMENT";
    /// The tensor's element type is not the one agreed on.
    DtypeMismatch = -3, "TSW_ERR_DTYPE_MISMATCH";
    /// The ticket was never given out, or its completion was delivered already.
    BadTicket = -4, "TSW_ERR_BAD_TICKET";
    /// No parameter has this id.
    UnknownParameter = -5, "TSW_ERR_UNKNOWN_PARAMETER";
    /// A configuration key or value is not known.
    Config = -6, "TSW_ERR_CONFIG";
    /// The object belongs to the parent of this forked process.
    Forked = -7, "TSW_ERR_FORKED";
    /// The object is in use, or a bound is reached; later it can succeed.
    Busy = -20, "TSW_ERR_BUSY";
    /// No pinned buffer is to be had.
    NoBuffers = -21, "TSW_ERR_NO_BUFFERS";
    /// The engine has been shut down.
    ShutDown = -22, "TSW_ERR_SHUT_DOWN";
    /// A panic happened inside the object earlier; it can only be freed.
    Poisoned = -23, "TSW_ERR_POISONED";
    /// The time given for waiting is over.
    TimedOut = -24, "TSW_ERR_TIMED_OUT";
    /// The operation was cancelled.
    Cancelled = -25, "TSW_ERR_CANCELLED";
    /// Another process holds the lock.
    Locked = -26, "TSW_ERR_LOCKED";
    /// Storage failed.
    Io = -40, "TSW_ERR_IO";
    /// Storage, or the quota on it, is full.
    NoSpace = -41, "TSW_ERR_NO_SPACE";
    /// A file or directory does not exist.
    NotFound = -42, "TSW_ERR_NOT_FOUND";
    /// What is stored is shorter, or of another size, than asked for.
    SizeMismatch = -43, "TSW_ERR_SIZE_MISMATCH";
    /// What is stored is not what was written.
    Checksum = -44, "TSW_ERR_CHECKSUM";
    /// Access is not permitted.
    Permission = -45, "TSW_ERR_PERMISSION";
    /// The structure on storage is damaged.
    Corrupt = -46, "TSW_ERR_CORRUPT";
    /// Memory could not be allocated.
    NoMemory = -60, "TSW_ERR_NO_MEMORY";
    /// Memory could not be locked (`RLIMIT_MEMLOCK`).
    Memlock = -61, "TSW_ERR_MEMLOCK";
    /// The pinned budget is too small.
    Budget = -62, "TSW_ERR_BUDGET";
    /// The kernel, the file system or this build cannot do it.
    Unsupported = -63, "TSW_ERR_UNSUPPORTED";
    /// A defect of the library; the object is poisoned.
    Internal = -90, "TSW_ERR_INTERNAL";
}

impl Status {
    /// The status with this number, if there is one.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Status> {
        Status::ALL
            .iter()
            .copied()
            .find(|status| *status as i32 == number)
    }

    /// Whether the same call can succeed later without the caller changing its arguments.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Status::Busy
                | Status::NoBuffers
                | Status::TimedOut
                | Status::Cancelled
                | Status::NoSpace
                | Status::NoMemory
                | Status::Memlock
                | Status::Locked
        )
    }
}

/// A failed transfer or a failed operation on a file: everything there is to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoFailure {
    /// `swap_out`, `swap_in`, `open`, …: what was being done.
    pub operation: &'static str,
    /// The path as the caller gave it.
    pub path: String,
    /// Byte offset in the file at which it failed, where there is one.
    pub offset_bytes: Option<u64>,
    /// The raw errno; 0 where the kernel reported none.
    pub errno: i32,
    /// What else is known, in words; may be empty.
    pub detail: String,
}

impl fmt::Display for IoFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operation, self.path)?;
        if let Some(offset) = self.offset_bytes {
            write!(f, " at {offset}")?;
        }
        if self.errno != 0 {
            write!(f, ": {}", errno_name(self.errno))?;
        }
        match (self.detail.is_empty(), self.errno) {
            (true, _) => Ok(()),
            (false, 0) => write!(f, ": {}", self.detail),
            (false, _) => write!(f, " ({})", self.detail),
        }
    }
}

/// Everything that can go wrong, by what a caller can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An argument that must be given is missing.
    #[error("{0} is NULL")]
    NullArgument(&'static str),
    /// An argument is outside of what the function accepts: mend the call.
    #[error("{0}")]
    InvalidArgument(String),
    /// The tensor's element type is not the one agreed on: mend the call.
    #[error("{0}")]
    DtypeMismatch(String),
    /// No parameter has this id: mend the call.
    #[error("no parameter has the id {0}")]
    UnknownParameter(u64),
    /// The ticket is not alive: do not use it again.
    #[error("ticket {0:#x} is not alive: never given out, or already delivered")]
    BadTicket(u64),
    /// A key or a value of the configuration is unknown: mend the configuration.
    #[error("{0}")]
    Config(String),
    /// The object lives in the parent process: make a new one after the fork.
    #[error("this object belongs to the parent of this forked process")]
    Forked,
    /// In use, or a bound reached: try again later.
    #[error("{0}")]
    Busy(String),
    /// No pinned buffer is to be had: give buffers first.
    #[error("{0}")]
    NoBuffers(String),
    /// The engine accepts nothing any more: make a new one.
    #[error("the engine is shut down")]
    ShutDown,
    /// A defect was met earlier: free the object.
    #[error("an internal error happened earlier; the object can only be freed")]
    Poisoned,
    /// The time for waiting is over: wait again.
    #[error("{0}")]
    TimedOut(String),
    /// The caller cancelled it.
    #[error("{0}")]
    Cancelled(String),
    /// Storage failed or refused; the status follows from the errno.
    #[error("{0}")]
    Io(Box<IoFailure>),
    /// What is stored is shorter than asked for: the file is not what the caller thinks.
    #[error("{0}")]
    SizeMismatch(Box<IoFailure>),
    /// A store records something else than the caller declares: mend the declaration.
    #[error("{0}")]
    StoreMismatch(String),
    /// What was read is not what was written: a torn, lost, misplaced or damaged write.
    #[error("{0}")]
    Checksum(Box<IoFailure>),
    /// A file of the store is damaged, or is none of ours.
    #[error("{0}")]
    Corrupt(Box<IoFailure>),
    /// Another process uses the store, or another object of this one.
    #[error("{0}")]
    Locked(Box<IoFailure>),
    /// The budget of pinned memory is too small: the message names the bytes needed.
    #[error("{0}")]
    Budget(String),
    /// Memory could not be allocated: free some.
    #[error("{0}")]
    NoMemory(String),
    /// Memory could not be locked: raise `RLIMIT_MEMLOCK` or set `pin=prefer`.
    #[error("{message}")]
    Memlock {
        /// What could not be locked, and the limit.
        message: String,
        /// The errno of the refusal.
        errno: i32,
    },
    /// The kernel, the file system or this build cannot do it.
    #[error("{message}")]
    Unsupported {
        /// What cannot be done, and why.
        message: String,
        /// The errno of the refusal; 0 where there was none.
        errno: i32,
    },
    /// A defect of the library.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// An `InvalidArgument` with this message.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::InvalidArgument(message.into())
    }

    /// The failure of a file operation.
    #[must_use]
    pub fn io(
        operation: &'static str,
        path: &[u8],
        offset_bytes: Option<u64>,
        errno: i32,
        detail: impl Into<String>,
    ) -> Error {
        Error::Io(Box::new(IoFailure {
            operation,
            path: String::from_utf8_lossy(path).into_owned(),
            offset_bytes,
            errno,
            detail: detail.into(),
        }))
    }

    /// The same failure, which says what it struck; errors that are not of a file stay as they are.
    #[must_use]
    pub(crate) fn striking(mut self, what: &str) -> Error {
        if let Error::Io(failure) | Error::SizeMismatch(failure) | Error::Checksum(failure) =
            &mut self
        {
            let separator = if failure.detail.is_empty() { "" } else { ", " };
            failure.detail = format!("{what}{separator}{}", failure.detail);
        }
        self
    }

    /// The number that C sees.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Error::NullArgument(_) => Status::NullArgument,
            Error::InvalidArgument(_) => Status::InvalidArgument,
            Error::DtypeMismatch(_) => Status::DtypeMismatch,
            Error::UnknownParameter(_) => Status::UnknownParameter,
            Error::BadTicket(_) => Status::BadTicket,
            Error::Config(_) => Status::Config,
            Error::Forked => Status::Forked,
            Error::Busy(_) => Status::Busy,
            Error::NoBuffers(_) => Status::NoBuffers,
            Error::ShutDown => Status::ShutDown,
            Error::Poisoned => Status::Poisoned,
            Error::TimedOut(_) => Status::TimedOut,
            Error::Cancelled(_) => Status::Cancelled,
            Error::Io(failure) => status_of_errno(failure.errno),
            Error::SizeMismatch(_) | Error::StoreMismatch(_) => Status::SizeMismatch,
            Error::Checksum(_) => Status::Checksum,
            Error::Corrupt(_) => Status::Corrupt,
            Error::Locked(_) => Status::Locked,
            Error::Budget(_) => Status::Budget,
            Error::NoMemory(_) => Status::NoMemory,
            Error::Memlock { .. } => Status::Memlock,
            Error::Unsupported { .. } => Status::Unsupported,
            Error::Internal(_) => Status::Internal,
        }
    }

    /// The errno behind the error; 0 where there is none.
    #[must_use]
    pub fn os_error(&self) -> i32 {
        match self {
            Error::Io(failure)
            | Error::SizeMismatch(failure)
            | Error::Checksum(failure)
            | Error::Corrupt(failure)
            | Error::Locked(failure) => failure.errno,
            Error::Memlock { errno, .. } | Error::Unsupported { errno, .. } => *errno,
            _ => 0,
        }
    }
}

/// What a caller can do about an errno that a file operation returned.
fn status_of_errno(errno: i32) -> Status {
    match errno {
        libc::ENOSPC | libc::EDQUOT => Status::NoSpace,
        libc::ENOENT | libc::ENOTDIR => Status::NotFound,
        libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY => Status::Permission,
        libc::ENAMETOOLONG | libc::EISDIR | libc::ELOOP => Status::InvalidArgument,
        libc::ENOMEM => Status::NoMemory,
        libc::ECANCELED => Status::Cancelled,
        libc::EOPNOTSUPP | libc::ENOSYS => Status::Unsupported,
        _ => Status::Io,
    }
}

macro_rules! errno_names {
    ($($name:ident)*) => {
        /// The symbolic name of an errno, as `ENOSPC`; "errno 523" where it has none here.
        pub(crate) fn errno_name(errno: i32) -> std::borrow::Cow<'static, str> {
            match errno {
                $(libc::$name => std::borrow::Cow::Borrowed(stringify!($name)),)*
                _ => std::borrow::Cow::Owned(format!("errno {errno}")),
            }
        }
    };
}

errno_names! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG EBADF EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST EXDEV
    ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK
    EPIPE ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENODATA ETIME EPROTO EOVERFLOW
    EILSEQ EOPNOTSUPP EALREADY EINPROGRESS ESTALE EUCLEAN EREMOTEIO EDQUOT ENOMEDIUM EMEDIUMTYPE
    ECANCELED ESHUTDOWN ETIMEDOUT EBADMSG
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_operation_path_offset_and_errno() {
        let error = Error::io(
            "swap_out",
            b"/mnt/a/p3",
            Some(4096),
            libc::ENOSPC,
            "12288 of 65536 bytes written",
        );
        assert_eq!(
            error.to_string(),
            "swap_out /mnt/a/p3 at 4096: ENOSPC (12288 of 65536 bytes written)"
        );
        assert_eq!(error.status(), Status::NoSpace);
        assert_eq!(error.os_error(), libc::ENOSPC);
    }

    #[test]
    fn every_status_is_found_by_its_number() {
        for status in Status::ALL {
            assert_eq!(Status::from_number(*status as i32), Some(*status));
            assert!(status.name().starts_with("TSW_"));
        }
        assert_eq!(Status::from_number(-999), None);
    }
}
