use crate::error::ZmtpError;

/// The properties of a READY, one by one: name and value. It ends after the first error.
///
/// Names are compared without regard to case, by the RFC.
#[derive(Clone, Debug)]
pub struct Properties<'a> {
    rest: &'a [u8],
}

impl<'a> Properties<'a> {
    /// Those that stand in this metadata: what follows the command's name.
    pub fn of(metadata: &'a [u8]) -> Self {
        Self { rest: metadata }
    }
}

impl<'a> Iterator for Properties<'a> {
    type Item = Result<(&'a str, &'a [u8]), ZmtpError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let split = split(self.rest);
        self.rest = split.as_ref().map_or(&[], |&(_, _, rest)| rest);
        Some(split.map(|(name, value, _)| (name, value)))
    }
}

/// Adds a property. The names are our own, and short.
pub(super) fn write_property(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&(value.len() as u32).to_be_bytes());
    out.extend_from_slice(value);
}

/// The first property, and what follows it.
fn split(metadata: &[u8]) -> Result<(&str, &[u8], &[u8]), ZmtpError> {
    let (name, rest) = metadata
        .split_first()
        .and_then(|(&bytes, rest)| rest.split_at_checked(usize::from(bytes)))
        .ok_or(ZmtpError::PropertyName)?;
    if name.is_empty() || !name.iter().all(is_of_a_name) {
        return Err(ZmtpError::PropertyName);
    }
    let name = str::from_utf8(name).map_err(|_| ZmtpError::PropertyName)?;
    let (length, rest) = rest.split_first_chunk().ok_or(ZmtpError::PropertyValue)?;
    let (value, rest) = usize::try_from(u32::from_be_bytes(*length))
        .ok()
        .and_then(|bytes| rest.split_at_checked(bytes))
        .ok_or(ZmtpError::PropertyValue)?;
    Ok((name, value, rest))
}

fn is_of_a_name(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.+".contains(byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(metadata: &[u8]) -> Result<Vec<(&str, &[u8])>, ZmtpError> {
        Properties::of(metadata).collect()
    }

    #[test]
    fn properties_are_read_as_they_are_written() {
        let mut metadata = Vec::new();
        write_property("Socket-Type", b"DEALER", &mut metadata);
        write_property("Identity", b"", &mut metadata);
        write_property("x", &[0xff; 300], &mut metadata);
        assert_eq!(metadata[..16], *b"\x0bSocket-Type\0\0\0\x06");
        let expected: [(&str, &[u8]); 3] = [
            ("Socket-Type", b"DEALER"),
            ("Identity", b""),
            ("x", &[0xff; 300]),
        ];
        assert_eq!(read(&metadata).unwrap(), expected);
        assert_eq!(read(&[]), Ok(vec![]));
    }

    #[test]
    fn metadata_that_is_cut_short_is_refused() {
        let mut metadata = Vec::new();
        write_property("Identity", b"me", &mut metadata);
        for bytes in 1..metadata.len() {
            let expected = match bytes {
                ..9 => ZmtpError::PropertyName,
                _ => ZmtpError::PropertyValue,
            };
            assert_eq!(read(&metadata[..bytes]), Err(expected), "{bytes}");
        }
    }

    #[test]
    fn lengths_past_the_end_are_refused() {
        for length in [3, 256, 1 << 31, u32::MAX - 5, u32::MAX] {
            let metadata = [b"\x01x", &length.to_be_bytes()[..], b"ab"].concat();
            assert_eq!(read(&metadata), Err(ZmtpError::PropertyValue), "{length}");
        }
    }

    #[test]
    fn names_that_are_no_words_are_refused() {
        for metadata in [
            &b"\0\0\0\0\0"[..],
            b"\x01 \0\0\0\0",
            b"\x02\xc3\xa9\0\0\0\0",
        ] {
            assert_eq!(read(metadata), Err(ZmtpError::PropertyName), "{metadata:?}");
        }
    }

    #[test]
    fn nothing_is_read_behind_an_error() {
        let mut properties = Properties::of(b"\x00\x01x\0\0\0\0");
        assert!(properties.next().unwrap().is_err());
        assert_eq!(properties.next(), None);
    }
}
