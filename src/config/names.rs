//! Words that a key takes only from a list.

/// An enum whose variants are words in the configuration: `FromStr`, `Display` and serde all
/// speak the same words, and an unknown one is refused with those that there are.
macro_rules! named {
    (
        $(#[$meta:meta])*
        $name:ident: $what:literal {
            $( $(#[$variant_meta:meta])* $variant:ident = $word:literal, )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "&'static str")]
        pub enum $name {
            $( $(#[$variant_meta])* $variant, )+
        }

        impl $name {
            /// Every word that this build knows.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word that the configuration uses.
            pub fn as_str(self) -> &'static str {
                match self {
                    $( Self::$variant => $word, )+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::error::UnknownName;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word {
                    $( $word => Ok(Self::$variant), )+
                    _ => Err(crate::error::UnknownName {
                        what: $what,
                        given: word.to_owned(),
                        known: Self::WORDS.join(", "),
                    }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = crate::error::UnknownName;

            fn try_from(word: String) -> Result<Self, Self::Error> {
                word.parse()
            }
        }

        impl From<$name> for &'static str {
            fn from(name: $name) -> &'static str {
                name.as_str()
            }
        }
    };
}

pub(crate) use named;
