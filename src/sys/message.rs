//! One line of text built on the stack.

/// A line of at most [`Message::CAPACITY`] bytes; what does not fit is cut off.
pub(crate) struct Message {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl Message {
    const CAPACITY: usize = 240;

    pub(crate) const fn new() -> Self {
        Message { bytes: [0; Self::CAPACITY], len: 0 }
    }

    /// Begins anew.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        for &byte in text.as_bytes() {
            if self.len < Self::CAPACITY {
                self.bytes[self.len] = byte;
                self.len += 1;
            }
        }
        self
    }

    pub(crate) fn hex(&mut self, value: usize) -> &mut Self {
        self.text("0x");
        let digits = (usize::BITS - value.leading_zeros()).div_ceil(4).max(1);
        for place in (0..digits).rev() {
            let digit = (value >> (4 * place)) & 15;
            self.text(&"0123456789abcdef"[digit..=digit]);
        }
        self
    }

    #[cfg_attr(any(pcpalloc_twin, miri), allow(dead_code))]
    pub(crate) fn decimal(&mut self, value: usize) -> &mut Self {
        if value >= 10 {
            self.decimal(value / 10);
        }
        let digit = value % 10;
        self.text(&"0123456789"[digit..=digit])
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_has_no_leading_zeros() {
        let mut line = Message::new();
        line.hex(0).text(" ").hex(0x7f00_1230).text(" ").hex(usize::MAX);
        assert_eq!(line.as_bytes(), b"0x0 0x7f001230 0xffffffffffffffff");
    }

    #[test]
    fn a_line_too_long_is_cut() {
        let mut line = Message::new();
        for _ in 0..100 {
            line.text("0123456789");
        }
        assert_eq!(line.as_bytes().len(), Message::CAPACITY);
    }
}
