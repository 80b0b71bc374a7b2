//! Lists of tensors and paths: checked, and brought into the form of the layers below.
//!
//! The two vectors are kept by the thread, so that the steady state allocates nothing.

use std::cell::RefCell;
use std::ffi::{CStr, c_char};

use super::guard::{Failure, Outcome};
use super::tensor::tsw_tensor;
use crate::base::error::Error;
use crate::io::Tensor;

/// BOUND: elements for which a thread keeps its vectors.
const KEPT_MAX: usize = 1 << 16;

#[derive(Default)]
struct Lists {
    tensors: Vec<Tensor>,
    /// Empty between calls: only the capacity is kept.
    paths: Vec<&'static CStr>,
}

thread_local! {
    static LISTS: RefCell<Lists> = RefCell::default();
}

/// Checks a caller's lists and runs `body` on them. No list may be NULL unless `count` is 0.
///
/// # Safety
/// `tensors` and `paths` have `count` elements; the tensors' memory is as [`Tensor::new`] demands;
/// paths are NULL or end in NUL.
pub(super) unsafe fn with_list<R>(
    tensors: *const tsw_tensor,
    paths: *const *const c_char,
    count: usize,
    body: impl FnOnce(&[Tensor], &[&CStr]) -> Outcome<R>,
) -> Outcome<R> {
    if count == 0 {
        return body(&[], &[]);
    }
    if tensors.is_null() {
        return Err(Failure::null("tensors"));
    }
    if paths.is_null() {
        return Err(Failure::null("paths"));
    }
    let Lists {
        tensors: mut tensor_list,
        paths: kept,
    } = LISTS.with(|lists| {
        lists.try_borrow_mut().map_or_else(
            |_| Lists::default(),
            |mut lists| std::mem::take(&mut *lists),
        )
    });
    tensor_list.clear();
    let mut path_list: Vec<&CStr> = kept;
    let done = reserve(&mut tensor_list, &mut path_list, count)
        // SAFETY: this function's contract; neither list is NULL.
        .and_then(|()| unsafe { fill(tensors, paths, count, &mut tensor_list, &mut path_list) })
        .and_then(|()| body(&tensor_list, &path_list));
    path_list.clear();
    // Empty, so nothing of the caller's is kept; collecting in place keeps the allocation.
    let kept = path_list.into_iter().map(|_| c"").collect();
    if tensor_list.capacity() <= KEPT_MAX {
        let _ = LISTS.try_with(|lists| {
            if let Ok(mut lists) = lists.try_borrow_mut() {
                *lists = Lists {
                    tensors: tensor_list,
                    paths: kept,
                };
            }
        });
    }
    done
}

/// Makes room; the count is the caller's and may be anything.
fn reserve(tensors: &mut Vec<Tensor>, paths: &mut Vec<&CStr>, count: usize) -> Outcome<()> {
    tensors
        .try_reserve(count)
        .and_then(|()| paths.try_reserve(count))
        .map_err(|_| Error::NoMemory(format!("a list of {count} tensors")).into())
}

/// # Safety
/// As [`with_list`]; neither list is NULL.
unsafe fn fill(
    tensors: *const tsw_tensor,
    paths: *const *const c_char,
    count: usize,
    tensor_list: &mut Vec<Tensor>,
    path_list: &mut Vec<&CStr>,
) -> Outcome<()> {
    for index in 0..count {
        // SAFETY: `index` is below `count`.
        let (tensor, path) = unsafe { (&*tensors.add(index), *paths.add(index)) };
        // SAFETY: the caller vouches for the memory of its tensors.
        let tensor = unsafe { tensor.checked() }.map_err(|failure| failure.at("tensors", index))?;
        if path.is_null() {
            return Err(Failure::null("path").at("paths", index));
        }
        tensor_list.push(tensor);
        // SAFETY: not NULL; the caller vouches for its text.
        path_list.push(unsafe { CStr::from_ptr(path) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::Status;

    fn tensor(numel: u64) -> tsw_tensor {
        tsw_tensor {
            data: std::ptr::dangling_mut(),
            numel,
            dtype: 1,
            flags: 0,
            file_offset: 0,
            user_tag: 0,
            reserved: [0; 3],
        }
    }

    fn outcome(tensors: &[tsw_tensor], paths: &[*const c_char]) -> Outcome<usize> {
        assert_eq!(tensors.len(), paths.len());
        let body = |tensors: &[Tensor], paths: &[&CStr]| {
            assert_eq!(tensors.len(), paths.len());
            Ok(paths.iter().map(|path| path.count_bytes()).sum())
        };
        // SAFETY: the lists are as long as they are; the memory is not touched.
        unsafe { with_list(tensors.as_ptr(), paths.as_ptr(), tensors.len(), body) }
    }

    #[test]
    fn good_lists_pass_and_leave_nothing_behind() {
        assert_eq!(outcome(&[], &[]), Ok(0));
        let (one, three) = (c"a".as_ptr(), c"abc".as_ptr());
        assert_eq!(outcome(&[tensor(1), tensor(2)], &[one, three]), Ok(4));
        assert_eq!(outcome(&[tensor(1)], &[three]), Ok(3));
        LISTS.with_borrow(|lists| {
            assert!(lists.paths.is_empty());
            assert!(lists.paths.capacity() >= 2, "the allocation was not kept");
        });
    }

    #[test]
    fn a_bad_element_is_named() {
        let path = c"a".as_ptr();
        let mut bad = tensor(1);
        bad.reserved[2] = 1;
        let failure = outcome(&[tensor(1), bad], &[path, path]).unwrap_err();
        assert_eq!(failure.status, Status::InvalidArgument);
        assert_eq!(failure.message, "tensors[1]: reserved is not zero");
        let failure = outcome(&[tensor(1)], &[std::ptr::null()]).unwrap_err();
        assert_eq!(failure.status, Status::NullArgument);
        assert_eq!(failure.message, "paths[0]: path is NULL");
        assert_eq!(outcome(&[tensor(1)], &[path]), Ok(1));
    }

    #[test]
    fn an_absurd_count_is_refused_before_anything_is_read() {
        let (tensor, path) = (tensor(1), c"a".as_ptr());
        for count in [usize::MAX, usize::MAX / 64] {
            // SAFETY: nothing is read: there is no room for that many.
            let outcome =
                unsafe { with_list(&raw const tensor, &raw const path, count, |_, _| Ok(())) };
            assert_eq!(outcome.unwrap_err().status, Status::NoMemory);
        }
    }
}
