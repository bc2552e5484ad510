//! Lists of CPUs, as people and the kernel write them.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::CpuListError;

/// Linux's `NR_CPUS` is at most this on any architecture. It keeps a mistyped range from
/// allocating what it says.
pub const CPU_MAX: usize = 8191;

/// Which CPUs shards may be placed on.
///
/// In TOML `"auto"`, a list such as `"0-3,8"`, or an array such as `[0, 1, 2, 3, 8]`; the same
/// texts parse by [`FromStr`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Cpus {
    /// Every CPU that the process may use; the placement policy chooses among them.
    #[default]
    Auto,
    /// Exactly these, in this order: shard k gets the k-th. Not yet checked against the machine.
    List(Vec<usize>),
}

impl FromStr for Cpus {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let list = parse_list(text)?;
        if list.is_empty() {
            return Err(CpuListError::Empty);
        }
        Ok(Self::List(list))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::List(list) => f.write_str(&format_list(list)),
        }
    }
}

/// Parses the kernel's list format, `0-3,8`, in the order written; an empty text is an empty list.
pub(crate) fn parse_list(text: &str) -> Result<Vec<usize>, CpuListError> {
    let mut list = Vec::new();
    if text.trim().is_empty() {
        return Ok(list);
    }
    for part in text.split(',').map(str::trim) {
        match part.split_once('-') {
            None => list.push(parse_cpu(part, part)?),
            Some((first, last)) => {
                let (first, last) = (parse_cpu(first, part)?, parse_cpu(last, part)?);
                if last < first {
                    return Err(CpuListError::Backwards {
                        part: part.to_owned(),
                    });
                }
                list.extend(first..=last);
            }
        }
        // Ranges repeated without end would still grow: no list can be longer than the machine.
        if list.len() > CPU_MAX + 1 {
            return Err(CpuListError::TooHigh {
                cpu: list.len(),
                cpu_max: CPU_MAX,
            });
        }
    }
    Ok(list)
}

/// Writes a list in the kernel's format. Its order is kept, so only ascending runs become ranges.
pub(crate) fn format_list(list: &[usize]) -> String {
    let mut text = String::new();
    let mut rest = list;
    while let Some(&first) = rest.first() {
        let run = (0..)
            .zip(rest)
            .take_while(|&(i, &cpu)| first.checked_add(i) == Some(cpu))
            .count();
        let separator = if text.is_empty() { "" } else { "," };
        text += &match run {
            1 => format!("{separator}{first}"),
            _ => format!("{separator}{first}-{}", rest[run - 1]),
        };
        rest = &rest[run..];
    }
    if text.is_empty() {
        "none".to_owned()
    } else {
        text
    }
}

fn parse_cpu(digits: &str, part: &str) -> Result<usize, CpuListError> {
    let digits = digits.trim();
    // `usize::from_str` takes a leading `+`.
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(CpuListError::NotACpu {
            part: part.to_owned(),
        });
    }
    check_cpu(digits.parse().unwrap_or(usize::MAX))
}

fn check_cpu(cpu: usize) -> Result<usize, CpuListError> {
    match cpu <= CPU_MAX {
        true => Ok(cpu),
        false => Err(CpuListError::TooHigh {
            cpu,
            cpu_max: CPU_MAX,
        }),
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::List(list) => list.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CpusVisitor;

        impl<'de> Visitor<'de> for CpusVisitor {
            type Value = Cpus;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\", a list of CPUs such as \"0-3,8\", or an array of CPUs")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Cpus, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Cpus, A::Error> {
                let mut list = Vec::new();
                while let Some(cpu) = seq.next_element()? {
                    list.push(check_cpu(cpu).map_err(de::Error::custom)?);
                }
                match list.is_empty() {
                    true => Err(de::Error::custom(CpuListError::Empty)),
                    false => Ok(Cpus::List(list)),
                }
            }
        }

        deserializer.deserialize_any(CpusVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_parse_in_the_order_written() {
        assert_eq!("auto".parse(), Ok(Cpus::Auto));
        assert_eq!("0-3,8".parse(), Ok(Cpus::List(vec![0, 1, 2, 3, 8])));
        assert_eq!(" 5 , 1-2 ".parse(), Ok(Cpus::List(vec![5, 1, 2])));
        assert_eq!("7-7".parse(), Ok(Cpus::List(vec![7])));
    }

    #[test]
    fn each_bad_list_has_its_own_error() {
        let refused = |text: &str| text.parse::<Cpus>().expect_err(text);
        let not_a_cpu = |part: &str| CpuListError::NotACpu {
            part: part.to_owned(),
        };
        assert_eq!(refused(""), CpuListError::Empty);
        assert_eq!(refused("0,,1"), not_a_cpu(""));
        assert_eq!(refused("0-"), not_a_cpu("0-"));
        assert_eq!(refused("+1"), not_a_cpu("+1"));
        assert_eq!(refused("1-2-3"), not_a_cpu("1-2-3"));
        assert_eq!(refused("all"), not_a_cpu("all"));
        assert_eq!(
            refused("3-1"),
            CpuListError::Backwards {
                part: "3-1".to_owned()
            }
        );
        assert!(matches!(
            refused("0-18446744073709551615"),
            CpuListError::TooHigh { .. }
        ));
        assert!(matches!(
            refused("99999999999999999999999"),
            CpuListError::TooHigh { .. }
        ));
        let repeated = ["0-8191"; 3].join(",");
        assert!(matches!(refused(&repeated), CpuListError::TooHigh { .. }));
    }

    #[test]
    fn what_is_written_parses_again() {
        for list in [vec![0], vec![0, 1, 2, 8], vec![3, 1, 2], vec![5, 4, 3]] {
            let cpus = Cpus::List(list);
            assert_eq!(cpus.to_string().parse(), Ok(cpus));
        }
        assert_eq!(format_list(&[0, 1, 2, 8]), "0-2,8");
        assert_eq!(format_list(&[]), "none");
        assert_eq!(format_list(&[usize::MAX, 0]), format!("{},0", usize::MAX));
    }
}
