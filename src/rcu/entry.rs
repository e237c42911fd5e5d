//! Entries of pages of pointers: a deferred free, or a deferred call, in a word.
//!
//! ```text
//! 63       48 47                     0
//! |  class  |  address of the block  |
//! | CLASSES |  address of the head   |      // a call: what to call is noted in the head
//! ```

use core::alloc::Layout;
use core::ptr::NonNull;

use super::RcuHead;
use crate::observe;
use crate::size_class::{CLASSES, PAGE, block_size, class_of};

/// Where the number of the class starts. Addresses of user space end before.
const CLASS_SHIFT: u32 = 48;
pub(super) const ADDRESS_MASK: usize = (1 << CLASS_SHIFT) - 1;

/// In place of a class: the address is that of a head in which a call is noted.
pub(super) const CALL: usize = CLASSES;

/// The largest block whose pointer goes into a page; more is counted, and freed, one by one.
pub(super) const ENTRY_MAX: usize = PAGE;

/// A pointer and its class in a word; `None` for what is too large.
#[inline(always)]
pub(super) fn entry(block: NonNull<u8>, layout: Layout) -> Option<usize> {
    match class_of(layout.size(), layout.align()) {
        Some(class) if layout.size() <= ENTRY_MAX => Some(block.as_ptr() as usize | class << CLASS_SHIFT),
        _ => None,
    }
}

/// A call that was noted in its head, as a word; `None` if the head, which may be anybody's memory, lies or is tagged
/// beyond the addresses that the heap's own blocks have.
pub(super) fn call_entry(head: NonNull<RcuHead>) -> Option<usize> {
    let address = head.as_ptr() as usize;
    (address & !ADDRESS_MASK == 0).then_some(address | CALL << CLASS_SHIFT)
}

pub(super) fn class_of_entry(entry: usize) -> usize {
    entry >> CLASS_SHIFT
}

/// The head of a call's word.
pub(super) fn head_of(address: usize) -> NonNull<RcuHead> {
    // SAFETY: words of calls are made of pointers that are not null.
    unsafe { NonNull::new_unchecked(address as *mut RcuHead) }
}

/// Bytes that a word's block has, or that its call will free.
pub(super) fn bytes_of(entry: usize) -> usize {
    match class_of_entry(entry) {
        // SAFETY: the call was noted before its word was made, and the head is left alone until it is called.
        CALL => unsafe { RcuHead::call_bytes(head_of(entry & ADDRESS_MASK)) },
        class => block_size(class),
    }
}

/// Tells whoever observes the heap of a block that waits from now on.
pub(super) fn note_deferred(entry: usize) {
    if class_of_entry(entry) != CALL {
        observe::deferred((entry & ADDRESS_MASK) as *mut u8);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A head of anybody's may lie where a word has no room for it. Red if `call_entry` does not look.
    #[test]
    fn heads_beyond_a_word_make_none() {
        let at = |address: usize| call_entry(NonNull::new(address as *mut RcuHead).unwrap());
        let word = at(0x7fff_ffff_fff8).unwrap();
        assert_eq!((class_of_entry(word), word & ADDRESS_MASK), (CALL, 0x7fff_ffff_fff8));
        assert_eq!(at(1 << CLASS_SHIFT), None);
        assert_eq!(at(0xb400_7fff_ffff_fff8), None);
    }
}
