//! Lists of tensors, paths and numbers: checked, and brought into the form of the layers below.
//!
//! The vectors are kept by the thread, so that the steady state allocates nothing.

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
    if count > 0 && tensors.is_null() {
        return Err(Failure::null("tensors"));
    }
    if count > 0 && paths.is_null() {
        return Err(Failure::null("paths"));
    }
    with_kept(|lists| {
        let mut path_list: Vec<&CStr> = std::mem::take(&mut lists.paths);
        let tensor_list = &mut lists.tensors;
        // SAFETY: this function's contract; neither list is NULL.
        let done = unsafe { fill_tensors(tensors, "tensors", count, tensor_list) }
            // SAFETY: as above.
            .and_then(|()| unsafe { fill_paths(paths, count, &mut path_list) })
            .and_then(|()| body(tensor_list, &path_list));
        path_list.clear();
        // Empty, so nothing of the caller's is kept; collecting in place keeps the allocation.
        lists.paths = path_list.into_iter().map(|_| c"").collect();
        done
    })
}

/// Checks a caller's tensors, which it calls `argument`, and runs `body` on them.
///
/// # Safety
/// `tensors` has `count` elements, and their memory is as [`Tensor::new`] demands.
pub(super) unsafe fn with_tensors<R>(
    tensors: *const tsw_tensor,
    argument: &'static str,
    count: usize,
    body: impl FnOnce(&[Tensor]) -> Outcome<R>,
) -> Outcome<R> {
    if count > 0 && tensors.is_null() {
        return Err(Failure::null(argument));
    }
    with_kept(|lists| {
        // SAFETY: this function's contract; the list is not NULL.
        unsafe { fill_tensors(tensors, argument, count, &mut lists.tensors) }?;
        body(&lists.tensors)
    })
}

/// A caller's tensor, which it calls `argument`, checked.
///
/// # Safety
/// `tensor` is NULL or a tensor whose memory is as [`Tensor::new`] demands.
pub(super) unsafe fn tensor(tensor: *const tsw_tensor, argument: &'static str) -> Outcome<Tensor> {
    // SAFETY: this function's contract.
    let tensor = unsafe { tensor.as_ref() }.ok_or_else(|| Failure::null(argument))?;
    // SAFETY: the caller vouches for the memory of its tensor.
    unsafe { tensor.checked() }.map_err(|failure| failure.of(argument))
}

/// A caller's numbers, which it calls `argument`, as they are.
///
/// # Safety
/// `numbers` has `count` elements that stay as they are for `'a`.
pub(super) unsafe fn numbers<'a>(
    numbers: *const u64,
    argument: &'static str,
    count: usize,
) -> Outcome<&'a [u64]> {
    if count == 0 {
        return Ok(&[]);
    }
    if numbers.is_null() {
        return Err(Failure::null(argument));
    }
    match count.checked_mul(size_of::<u64>()).map(isize::try_from) {
        // SAFETY: not NULL, of a size that can be, and this function's contract.
        Some(Ok(_)) => Ok(unsafe { std::slice::from_raw_parts(numbers, count) }),
        _ => Err(absurd(count)),
    }
}

/// Runs `body` on the thread's vectors, empty ones, and keeps them afterwards.
fn with_kept<R>(body: impl FnOnce(&mut Lists) -> Outcome<R>) -> Outcome<R> {
    let mut lists = LISTS.with(|lists| {
        lists.try_borrow_mut().map_or_else(
            |_| Lists::default(),
            |mut lists| std::mem::take(&mut *lists),
        )
    });
    lists.tensors.clear();
    let done = body(&mut lists);
    if lists.tensors.capacity() <= KEPT_MAX {
        let _ = LISTS.try_with(|kept| {
            if let Ok(mut kept) = kept.try_borrow_mut() {
                *kept = lists;
            }
        });
    }
    done
}

/// A list that no memory can hold.
fn absurd(count: usize) -> Failure {
    Error::NoMemory(format!("a list of {count} elements")).into()
}

/// Makes room; the count is the caller's and may be anything.
fn reserve<T>(list: &mut Vec<T>, count: usize) -> Outcome<()> {
    list.try_reserve(count).map_err(|_| absurd(count))
}

/// # Safety
/// As [`with_tensors`]; the list is not NULL.
unsafe fn fill_tensors(
    tensors: *const tsw_tensor,
    argument: &'static str,
    count: usize,
    into: &mut Vec<Tensor>,
) -> Outcome<()> {
    reserve(into, count)?;
    for index in 0..count {
        // SAFETY: `index` is below `count`; the caller vouches for the memory of its tensors.
        let tensor = unsafe { (*tensors.add(index)).checked() };
        into.push(tensor.map_err(|failure| failure.at(argument, index))?);
    }
    Ok(())
}

/// # Safety
/// As [`with_list`]; the list is not NULL.
unsafe fn fill_paths(
    paths: *const *const c_char,
    count: usize,
    into: &mut Vec<&CStr>,
) -> Outcome<()> {
    reserve(into, count)?;
    for index in 0..count {
        // SAFETY: `index` is below `count`.
        let path = unsafe { *paths.add(index) };
        if path.is_null() {
            return Err(Failure::null("path").at("paths", index));
        }
        // SAFETY: not NULL; the caller vouches for its text.
        into.push(unsafe { CStr::from_ptr(path) });
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
    fn tensors_alone_are_checked_as_well() {
        let count_of = |tensors: &[tsw_tensor]| {
            let body = |tensors: &[Tensor]| Ok(tensors.len());
            // SAFETY: the list is as long as it is; the memory is not touched.
            unsafe { with_tensors(tensors.as_ptr(), "sources", tensors.len(), body) }
        };
        assert_eq!(count_of(&[]), Ok(0));
        assert_eq!(count_of(&[tensor(1), tensor(2)]), Ok(2));
        let mut bad = tensor(1);
        bad.dtype = 99;
        let failure = count_of(&[tensor(1), bad]).unwrap_err();
        assert!(failure.message.starts_with("sources[1]: "), "{failure:?}");
        // SAFETY: NULL is allowed.
        let none = unsafe { with_tensors(std::ptr::null(), "sources", 1, |_| Ok(())) };
        assert_eq!(none.unwrap_err().message, "sources is NULL");
    }

    #[test]
    fn numbers_are_taken_as_they_are() {
        let ids = [7_u64, 8];
        // SAFETY: the list is as long as it is; nothing is read where the count cannot be.
        unsafe {
            assert_eq!(numbers(ids.as_ptr(), "ids", 2), Ok(ids.as_slice()));
            assert_eq!(numbers(std::ptr::null(), "ids", 0), Ok([].as_slice()));
            let failure = numbers(std::ptr::null(), "ids", 1).unwrap_err();
            assert_eq!(failure.message, "ids is NULL");
            for count in [usize::MAX, usize::MAX / 8] {
                let failure = numbers(ids.as_ptr(), "ids", count).unwrap_err();
                assert_eq!(failure.status, Status::NoMemory);
            }
        }
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
