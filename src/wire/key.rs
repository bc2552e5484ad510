use std::fmt;

/// What stands for a handler's name on the wire: FNV-1a 64 of its UTF-8 bytes.
///
/// Two names with one key cannot be served by one process; the registry refuses the second at
/// start.
///
/// ```
/// use corelane::wire::HandlerKey;
/// assert_eq!(HandlerKey::of("").get(), 0xcbf29ce484222325);
/// assert_eq!(HandlerKey::of("sum").to_string(), "82719e195d0fc4a8");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandlerKey(u64);

impl HandlerKey {
    /// The key of a name. A `const fn`, so that a key known at compile time costs nothing.
    pub const fn of(name: &str) -> Self {
        let bytes = name.as_bytes();
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let mut at = 0;
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            at += 1;
        }
        Self(hash)
    }

    /// The key with this number, as read from the wire.
    pub const fn from_u64(key: u64) -> Self {
        Self(key)
    }

    /// The number that the wire carries.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// The key of a name.
impl From<&str> for HandlerKey {
    fn from(name: &str) -> Self {
        Self::of(name)
    }
}

impl From<&String> for HandlerKey {
    fn from(name: &String) -> Self {
        Self::of(name)
    }
}

/// Sixteen hex digits, as `hello` and `welcome` write it.
impl fmt::Display for HandlerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for HandlerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandlerKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::HandlerKey;

    /// From the FNV authors' own test vectors.
    #[test]
    fn key_is_fnv_1a_64() {
        for (name, key) in [
            ("", 0xcbf2_9ce4_8422_2325),
            ("a", 0xaf63_dc4c_8601_ec8c),
            ("foobar", 0x8594_4171_f739_67e8),
        ] {
            assert_eq!(HandlerKey::of(name).get(), key, "{name}");
        }
    }
}
