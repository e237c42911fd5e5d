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
use crate::sys::{self, Fault, FileRoom, Message};

/// What is wrong with a free.
#[derive(Clone, Copy)]
pub(super) enum Wrong {
    Twice,
    NotABlock,
}

static TURN: sys::Turn<Room> = sys::Turn::new(Room::new());
/// Bad accesses reported. Relaxed: a statistic.
static REPORTS: AtomicU32 = AtomicU32::new(0);

/// What a report needs, apart from a signal's stack: of 8 KiB, which is what Rust gives threads, the kernel alone takes
/// 3.6 with the registers of AVX-512.
struct Room {
    line: Message,
    file: FileRoom,
    /// A file's name, and how much of this is one.
    name: [u8; 160],
    name_len: usize,
    frames: [usize; guarded::FRAMES],
}

impl Room {
    const fn new() -> Room {
        let (line, file) = (Message::new(), FileRoom::new());
        Room { line, file, name: [0; 160], name_len: 0, frames: [0; guarded::FRAMES] }
    }

    /// Writes the line, and begins another.
    fn say_line(&mut self) {
        self.line.text("\n");
        sys::report(self.line.as_bytes());
        self.line.clear();
    }
}

/// Has bad accesses reported from now on.
pub(super) fn install() {
    sys::on_fault(on_fault);
}

fn on_fault(fault: &Fault) {
    if owns(fault.address) {
        TURN.take(|room| report_access(room, fault));
    }
}

/// Says what is wrong with a free, and ends the process.
#[cold]
pub(super) fn bad_free(wrong: Wrong, address: usize, slot: Option<&Slot>) -> ! {
    let what = match wrong {
        Wrong::Twice => crate::slab::TWICE,
        Wrong::NotABlock => crate::slab::MIDDLE,
    };
    TURN.take(|room| {
        room.line.text("pcpalloc: ").text(what);
        say_block(room, slot, address);
        say_history(room, slot);
        let len = sys::stack_trace(&mut room.frames);
        say("  freed now:\n");
        (0..len).for_each(|n| say_place(room, room.frames[n]));
    });
    sys::die(what, address)
}

fn report_access(room: &mut Room, fault: &Fault) {
    // Something is very wrong if there are many: a program that goes on after each.
    if REPORTS.fetch_add(1, Ordering::Relaxed) > 16 {
        return;
    }
    let page = page_of(fault.address);
    let (what, slot) = if page % 2 == 1 {
        match guarded::slot(page / 2).filter(|slot| distance(slot, fault.address).is_some()) {
            None => ("wild access", None),
            slot => ("use after free", slot),
        }
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
    room.line.text("pcpalloc: ").text(what).text(match fault.wrote {
        Some(true) => ": a write at ",
        Some(false) => ": a read at ",
        None => ": an access at ",
    });
    room.line.hex(fault.address);
    say_block(room, slot, fault.address);
    if fault.at != 0 {
        say("  the access:\n");
        say_place(room, fault.at);
    }
    say_history(room, slot);
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
fn say_block(room: &mut Room, slot: Option<&Slot>, address: usize) {
    if let Some(slot) = slot {
        let line = &mut room.line;
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
    room.say_line();
}

fn say_history(room: &mut Room, slot: Option<&Slot>) {
    let Some(slot) = slot else { return };
    say_trace(room, "  allocated", &slot.allocated);
    match slot.state.load(Ordering::Acquire) {
        LIVE => {}
        FREED if slot.freed.len.load(Ordering::Relaxed) > 0 => say_trace(room, "  freed", &slot.freed),
        _ => say("  freed by free_nolock, which cannot say where\n"),
    }
}

fn say_trace(room: &mut Room, what: &str, trace: &Trace) {
    room.line.text(what).text(" by thread ").decimal(trace.thread.load(Ordering::Relaxed) as usize).text(":");
    room.say_line();
    let len = trace.len.load(Ordering::Relaxed) as usize;
    trace.frames.iter().take(len).for_each(|frame| say_place(room, frame.load(Ordering::Relaxed)));
}

fn say(text: &str) {
    sys::report(text.as_bytes());
}

/// A line with an address, and the file that is mapped there with the distance from where that file's first byte is.
fn say_place(room: &mut Room, address: usize) {
    let Room { line, file, name, name_len, .. } = room;
    line.text("    ").hex(address);
    // Where the file began whose lines are being read: mappings of one file follow each other.
    let mut base = 0;
    *name_len = 0;
    file.each_line_of(c"/proc/self/maps", |text| {
        let Some((start, end, offset, path)) = mapping(text) else { return true };
        let shown = &path[..path.len().min(name.len())];
        if offset == 0 || &name[..*name_len] != shown {
            *name_len = shown.len();
            name[..*name_len].copy_from_slice(shown);
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
    room.say_line();
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

/// A number at the start, of which the lowest 64 bits, and what follows it. By hand, since it takes little of the stack.
fn hexadecimal(text: &[u8]) -> Option<(usize, &[u8])> {
    let (mut number, mut rest) = (0, text);
    while let [byte, after @ ..] = rest {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => break,
        };
        (number, rest) = (number << 4 | digit as usize, after);
    }
    (rest.len() < text.len()).then_some((number, rest))
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
