//! What an NVMe drive tells of its life: the log page "SMART / Health Information".

use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd;
use std::os::linux::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use crate::failure::words_of;

/// Length of the page.
const PAGE_BYTES: usize = 512;
const PAGE_LEN: u32 = 512;
/// NVM Express Base Specification: data units are counted in thousands of 512 bytes.
const DATA_UNIT_BYTES: u128 = 512_000;
/// `Get Log Page`, an admin command.
const GET_LOG_PAGE: u8 = 0x02;
const HEALTH_PAGE: u32 = 0x02;
/// The drive as a whole rather than one of its namespaces.
const ALL_NAMESPACES: u32 = 0xffff_ffff;
/// `NVME_IOCTL_ADMIN_CMD` of linux/nvme_ioctl.h: `_IOWR('N', 0x41, struct nvme_admin_cmd)`.
const ADMIN_COMMAND: libc::Ioctl = 0xc048_4e41_u32 as libc::Ioctl;

/// What is of interest of the page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Smart {
    /// The name of the block device.
    pub(crate) drive: String,
    /// Written by hosts in its whole life.
    pub(crate) written_bytes: u64,
    /// How much of its life the drive itself takes for used; may go beyond 100, and ends at 255.
    pub(crate) used_percent: u8,
    pub(crate) power_on_hours: u64,
}

/// Asks the drive that holds a directory; the reason, where it cannot be asked.
pub(crate) fn smart_of(place: &Path) -> Result<Smart, String> {
    let drive = drive_of(place)?;
    let path = Path::new("/dev").join(&drive);
    let failed = |error: &Error| match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => format!("only root may ask {drive}"),
        _ => format!("{}: {}", path.display(), words_of(error)),
    };
    let file = File::open(&path).map_err(|error| failed(&error))?;
    let page = health_page(&file).map_err(|error| failed(&error))?;
    Ok(decode(drive, &page))
}

fn drive_of(place: &Path) -> Result<String, String> {
    let device = place.metadata().map_err(|error| words_of(&error))?.st_dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let node = format!("/sys/dev/block/{major}:{minor}");
    let node = std::fs::canonicalize(node)
        .map_err(|_| "its file system does not say on which drive it lies".to_owned())?;
    let mut names = node.iter().filter_map(|name| name.to_str());
    let found = names.find(|name| is_nvme(name));
    found.map(str::to_owned).ok_or_else(|| {
        let name = node.file_name().unwrap_or_default().to_string_lossy();
        format!("{name} is no NVMe drive, or hides those that it is made of")
    })
}

/// Whether this is how the kernel calls a namespace of an NVMe drive: `nvme0n1`.
fn is_nvme(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.strip_prefix("nvme")
        .and_then(|rest| rest.split_once('n'))
        .is_some_and(|(drive, namespace)| is_number(drive) && is_number(namespace))
}

/// `struct nvme_admin_cmd` of linux/nvme_ioctl.h.
#[repr(C)]
#[derive(Default)]
struct AdminCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    words_2_and_3: [u32; 2],
    metadata: u64,
    address: u64,
    metadata_len: u32,
    data_len: u32,
    words_10_to_15: [u32; 6],
    timeout_ms: u32,
    result: u32,
}

fn health_page(device: &File) -> Result<[u8; PAGE_BYTES], Error> {
    let mut page = [0; PAGE_BYTES];
    let mut command = AdminCommand {
        opcode: GET_LOG_PAGE,
        namespace: ALL_NAMESPACES,
        address: page.as_mut_ptr().expose_provenance() as u64,
        data_len: PAGE_LEN,
        // The length in words of 4 bytes, less one, lies above the number of the page.
        words_10_to_15: [HEALTH_PAGE | (PAGE_LEN / 4 - 1) << 16, 0, 0, 0, 0, 0],
        ..AdminCommand::default()
    };
    // SAFETY: the kernel reads and writes the one structure that the request is defined for, and
    // writes at most `data_len` bytes to the page that it names; both outlive the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), ADMIN_COMMAND, &raw mut command) } {
        0 => Ok(page),
        status if status > 0 => Err(Error::other(format!("the drive refused: {status:#x}"))),
        _ => Err(Error::last_os_error()),
    }
}

fn decode(drive: String, page: &[u8; PAGE_BYTES]) -> Smart {
    let number = |at: usize| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&page[at..at + 16]);
        u128::from_le_bytes(bytes)
    };
    let fit = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
    Smart {
        drive,
        written_bytes: fit(number(48).saturating_mul(DATA_UNIT_BYTES)),
        used_percent: page[5],
        power_on_hours: fit(number(128)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_read_as_the_specification_lays_it_out() {
        let mut page = [0xa5; PAGE_BYTES];
        page[5] = 7;
        page[48..64].copy_from_slice(&1_953_126_u128.to_le_bytes());
        page[128..144].copy_from_slice(&4_321_u128.to_le_bytes());
        let expected = Smart {
            drive: "nvme0n1".to_owned(),
            written_bytes: 1_000_000_512_000,
            used_percent: 7,
            power_on_hours: 4321,
        };
        assert_eq!(decode("nvme0n1".to_owned(), &page), expected);
        // What no drive will reach does not wrap.
        let most = decode(String::new(), &[0xff; PAGE_BYTES]);
        assert_eq!(
            (most.written_bytes, most.used_percent, most.power_on_hours),
            (u64::MAX, 255, u64::MAX)
        );
    }

    #[test]
    fn the_command_has_the_layout_of_the_kernel_and_its_length_is_in_the_request() {
        let len = std::mem::size_of::<AdminCommand>();
        assert_eq!(len, 72);
        assert_eq!(ADMIN_COMMAND >> 16 & 0x3fff, 72);
        assert_eq!(std::mem::offset_of!(AdminCommand, address), 24);
        assert_eq!(std::mem::offset_of!(AdminCommand, words_10_to_15), 40);
    }

    #[test]
    fn namespaces_are_told_from_controllers_partitions_and_other_drives() {
        assert!(is_nvme("nvme0n1") && is_nvme("nvme12n3"));
        for name in [
            "nvme0",
            "nvme0n1p2",
            "nvme",
            "nvmen",
            "vda",
            "nvme0c0n1",
            "nvme-subsys0",
        ] {
            assert!(!is_nvme(name), "{name}");
        }
    }

    #[test]
    fn what_is_no_nvme_drive_is_said_and_a_file_is_no_drive() {
        assert!(
            smart_of(Path::new("/proc"))
                .unwrap_err()
                .contains("does not say")
        );
        let file = tempfile::tempfile().unwrap();
        let error = health_page(&file).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
