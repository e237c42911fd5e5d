//! What is said of a bad access to the guarded pool, or a bad free. Async-signal-safe: no lock, no allocation.
//!
//! ```text
//! pcpalloc: use after free: a write at 0x7f31c5a42fd0, in a block of 48 bytes at 0x7f31c5a42fd0
//!   the access:
//!     0x55d3a7a10f2e /opt/service/bin/server+0x10f2e
//!   allocated by thread 4711:
//!     0x55d3a7a0c1d4 /opt/service/bin/server+0xc1d4
//!     …
//!   freed by thread 4712:
//!     …
//! ```
//!
//! A place is an address, and the file that lies there with the distance from its start, as `addr2line -e` and
//! `llvm-symbolizer` take it. (The symbols' names are in tables that a signal handler had better not look for.)

use core::sync::atomic::{AtomicU32, Ordering};

use super::guarded::{self, FREED, LIVE, Slot, Trace, UNUSED, owns, page_of};
use crate::size_class::block_size;
use crate::sys::{self, Fault, Message};

/// What is wrong with a free.
#[derive(Clone, Copy)]
pub(super) enum Wrong {
    Twice,
    NotABlock,
}

static TURN: sys::Turn = sys::Turn::new();
/// Bad accesses reported. Relaxed: a statistic.
static REPORTS: AtomicU32 = AtomicU32::new(0);

/// Has bad accesses reported from now on.
pub(super) fn install() {
    sys::on_fault(on_fault);
}

fn on_fault(fault: &Fault) {
    if owns(fault.address) {
        TURN.take(|| report_access(fault));
    }
}

/// Says what is wrong with a free, and ends the process.
#[cold]
pub(super) fn bad_free(wrong: Wrong, address: usize, slot: Option<&Slot>) -> ! {
    let what = match wrong {
        Wrong::Twice => crate::slab::TWICE,
        Wrong::NotABlock => crate::slab::MIDDLE,
    };
    TURN.take(|| {
        let mut line = Message::new();
        line.text("pcpalloc: ").text(what);
        say_block(&mut line, slot, address);
        say_history(slot);
        let mut frames = [0; guarded::FRAMES];
        let len = sys::stack_trace(&mut frames);
        say("  freed now:\n");
        frames[..len].iter().for_each(|&frame| say_place(frame));
    });
    sys::die(what, address)
}

fn report_access(fault: &Fault) {
    // Something is very wrong if there are many: a program that goes on after each.
    if REPORTS.fetch_add(1, Ordering::Relaxed) > 16 {
        return;
    }
    let page = page_of(fault.address);
    let (what, slot) = if page % 2 == 1 {
        ("use after free", guarded::slot(page / 2))
    } else {
        // Between two pages: whichever block is nearer.
        let (before, behind) = (page.checked_sub(1).and_then(|page| guarded::slot(page / 2)), guarded::slot(page / 2));
        match (before.and_then(|slot| distance(slot, fault.address)), behind.and_then(|s| distance(s, fault.address))) {
            (Some(one), Some(other)) if other < one => ("underflow", behind),
            (None, Some(_)) => ("underflow", behind),
            (Some(_), _) => ("overflow", before),
            (None, None) => ("wild access", None),
        }
    };
    let mut line = Message::new();
    line.text("pcpalloc: ").text(what).text(match fault.wrote {
        Some(true) => ": a write at ",
        Some(false) => ": a read at ",
        None => ": an access at ",
    });
    line.hex(fault.address);
    say_block(&mut line, slot, fault.address);
    if fault.at != 0 {
        say("  the access:\n");
        say_place(fault.at);
    }
    say_history(slot);
}

/// How far an address is from a block that is in use or was; `None` if there is none.
fn distance(slot: &Slot, address: usize) -> Option<usize> {
    (slot.state.load(Ordering::Acquire) != UNUSED).then(|| {
        let (start, end) = bounds(slot);
        if address < start { start - address } else { (address + 1).saturating_sub(end) }
    })
}

fn bounds(slot: &Slot) -> (usize, usize) {
    let start = slot.address.load(Ordering::Relaxed);
    (start, start + block_size(slot.class.load(Ordering::Relaxed) as usize))
}

/// Ends the line with where the address is, from the block.
fn say_block(line: &mut Message, slot: Option<&Slot>, address: usize) {
    if let Some(slot) = slot {
        let (start, end) = bounds(slot);
        line.text(", ");
        if address < start {
            line.decimal(start - address).text(" bytes in front of");
        } else if address >= end {
            line.decimal(address - end).text(" bytes behind the end of");
        } else {
            line.decimal(address - start).text(" bytes into");
        }
        line.text(" a block of ").decimal(end - start).text(" bytes at ").hex(start);
    }
    line.text("\n");
    sys::report(line.as_bytes());
}

fn say_history(slot: Option<&Slot>) {
    let Some(slot) = slot else { return };
    say_trace("  allocated", &slot.allocated);
    match slot.state.load(Ordering::Acquire) {
        LIVE => {}
        FREED if slot.freed.len.load(Ordering::Relaxed) > 0 => say_trace("  freed", &slot.freed),
        _ => say("  freed by free_nolock, which cannot say where\n"),
    }
}

fn say_trace(what: &str, trace: &Trace) {
    let mut line = Message::new();
    line.text(what).text(" by thread ").decimal(trace.thread.load(Ordering::Relaxed) as usize).text(":\n");
    sys::report(line.as_bytes());
    let len = trace.len.load(Ordering::Relaxed) as usize;
    trace.frames.iter().take(len).for_each(|frame| say_place(frame.load(Ordering::Relaxed)));
}

fn say(text: &str) {
    sys::report(text.as_bytes());
}

/// A line with an address, and the file that is mapped there with the distance from where that file's first byte is.
fn say_place(address: usize) {
    let mut line = Message::new();
    line.text("    ").hex(address);
    // Where the file began whose lines are being read: mappings of one file follow each other.
    let (mut name, mut name_len, mut base) = ([0u8; 160], 0, 0);
    sys::each_line_of(c"/proc/self/maps", |text| {
        let Some((start, end, offset, path)) = mapping(text) else { return true };
        let shown = &path[..path.len().min(name.len())];
        if offset == 0 || &name[..name_len] != shown {
            name_len = shown.len();
            name[..name_len].copy_from_slice(shown);
            base = start - offset.min(start);
        }
        if (start..end).contains(&address) {
            if let Ok(name) = core::str::from_utf8(shown)
                && !name.is_empty()
            {
                line.text(" ").text(name).text("+").hex(address - base);
            }
            return false;
        }
        true
    });
    line.text("\n");
    sys::report(line.as_bytes());
}

/// Start, end, offset and path of a line of `/proc/self/maps`.
fn mapping(line: &[u8]) -> Option<(usize, usize, usize, &[u8])> {
    let (start, rest) = hexadecimal(line)?;
    let (end, rest) = hexadecimal(rest.strip_prefix(b"-")?)?;
    // Rights: four letters between blanks.
    let (offset, rest) = hexadecimal(rest.get(6..)?)?;
    let path = rest.iter().position(|&byte| byte == b'/' || byte == b'[').map_or(&[][..], |at| &rest[at..]);
    Some((start, end, offset, path))
}

fn hexadecimal(text: &[u8]) -> Option<(usize, &[u8])> {
    let len = text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let number = core::str::from_utf8(&text[..len]).ok()?;
    Some((usize::from_str_radix(number, 16).ok()?, &text[len..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read() {
        let line = b"55d3a7a00000-55d3a7a21000 r-xp 0001f000 fe:01 1966347        /usr/bin/a b";
        let read = mapping(line);
        assert_eq!(read, Some((0x55d3_a7a0_0000, 0x55d3_a7a2_1000, 0x1f000, &b"/usr/bin/a b"[..])));
        let anonymous = mapping(b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 ");
        assert_eq!(anonymous, Some((0x7f00_0000_0000, 0x7f00_0000_1000, 0, &b""[..])));
        for wrong in [&b""[..], b"55d3", b"55d3-", b"1-2 r", b"xyz"] {
            assert_eq!(mapping(wrong), None, "{wrong:?}");
        }
    }
}
