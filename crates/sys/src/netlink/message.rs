/// Every header and attribute starts at a multiple of it (`NLMSG_ALIGNTO`, `NLA_ALIGNTO`).
const ALIGN: usize = 4;
/// `NLA_F_NESTED`: the attribute holds attributes.
const NESTED: u16 = 1 << 15;
/// The two flags of an attribute's kind are not part of it.
const KIND: u16 = 0x3fff;

/// Attributes in a row: each has a length, a kind and a value.
#[derive(Debug, Clone, Default)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that holds bytes. Values are short: one that is longer than 64 KiB is cut off.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let value = &value[..value.len().min(usize::from(u16::MAX) - ALIGN)];
        self.0.extend_from_slice(&((ALIGN + value.len()) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
        self
    }

    /// One that holds a number.
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// One that holds a text, which ends with a zero.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// One that holds others.
    pub fn nested(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// One that holds others as the kernel wrote them.
    pub(super) fn copied(self, kind: u16, inner: &[u8]) -> Self {
        self.bytes(kind | NESTED, inner)
    }

    /// Bytes that stand before the attributes in a nested one, as a peer's link header does.
    pub fn behind(self, header: &[u8]) -> Self {
        let mut bytes = header.to_vec();
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        bytes.extend(self.0);
        Self(bytes)
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// A request: what to do, with what.
#[derive(Debug, Clone)]
pub struct Message {
    /// `RTM_*`.
    pub kind: u16,
    /// `NLM_F_*` beside those that every request has.
    pub flags: u16,
    /// The header of its kind and the attributes behind it.
    pub body: Vec<u8>,
}

impl Message {
    /// A message whose body starts with `header`.
    pub fn new(kind: u16, flags: u16, header: &[u8], attributes: Attributes) -> Self {
        Self { kind, flags, body: attributes.behind(header).into_bytes() }
    }
}

/// The kinds and values of attributes in a row. What is cut off or impossible ends it.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & KIND;
        let value = bytes.get(ALIGN..length)?;
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The number in a value of four bytes.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().copied().map(u32::from_ne_bytes)
}

/// The text in a value, without the zero at its end.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let inner = Attributes::new().text(1, "veth").number(2, 7);
        let bytes = Attributes::new().bytes(3, &[1, 2, 3]).nested(4, inner).into_bytes();
        let outer: Vec<_> = attributes(&bytes).collect();
        assert_eq!(outer[0], (3, [1, 2, 3].as_slice()));
        assert_eq!(outer[1].0, 4);
        let inner: Vec<_> = attributes(outer[1].1).collect();
        assert_eq!((inner[0].0, text(inner[0].1)), (1, "veth".to_owned()));
        assert_eq!(number(inner[1].1), Some(7));
    }

    #[test]
    fn a_length_that_lies_ends_the_row() {
        assert_eq!(attributes(&[200, 0, 1, 0, 9]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0, 9, 9, 9, 9]).count(), 0);
        assert_eq!(attributes(&[4, 0, 1]).count(), 0);
    }
}
