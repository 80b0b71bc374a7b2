//! The ways of training that are compared.

use tensorswap::base::dtype::Dtype;

/// Types of master and moments on storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Types {
    F32,
    Bf16Moments,
}

impl Types {
    pub(crate) const ALL: [Types; 2] = [Types::F32, Types::Bf16Moments];

    /// Name, type in memory, type on storage of each state.
    pub(crate) fn states(self) -> [(&'static str, Dtype, Dtype); 3] {
        let moments = match self {
            Types::F32 => Dtype::F32,
            Types::Bf16Moments => Dtype::Bf16,
        };
        [
            ("master", Dtype::F32, Dtype::F32),
            ("exp_avg", Dtype::F32, moments),
            ("exp_avg_sq", Dtype::F32, moments),
        ]
    }

    /// Bytes on storage for one element.
    pub(crate) fn element_bytes(self) -> usize {
        match self {
            Types::F32 => 12,
            Types::Bf16Moments => 8,
        }
    }
}

/// One way of training.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) types: Types,
    pub(crate) is_synced: bool,
    /// Hundredths of the state that stay in memory.
    pub(crate) cache_percent: usize,
    pub(crate) checksum: &'static str,
    pub(crate) is_pipelined: bool,
    pub(crate) threads: usize,
}

impl Case {
    fn new(is_synced: bool, cache_percent: usize) -> Case {
        Case {
            name: String::new(),
            types: Types::F32,
            is_synced,
            cache_percent,
            checksum: "verify",
            is_pipelined: true,
            threads: 1,
        }
    }

    fn named(mut self) -> Case {
        let mut words = vec![
            if self.is_pipelined {
                "pipelined"
            } else {
                "unpipelined"
            }
            .to_owned(),
        ];
        words.push(format!(
            "sync={}",
            if self.is_synced { "commit" } else { "none" }
        ));
        if self.cache_percent > 0 {
            words.push(format!("cache {} %", self.cache_percent));
        }
        if self.types == Types::Bf16Moments {
            words.push("bf16 moments".to_owned());
        }
        if self.checksum != "verify" {
            words.push(format!("checksum={}", self.checksum));
        }
        if self.threads > 1 {
            words.push(format!("{} threads", self.threads));
        }
        self.name = words.join(", ");
        self
    }
}

/// Every case.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![Case {
        is_pipelined: false,
        ..Case::new(true, 0)
    }];
    for is_synced in [true, false] {
        for cache_percent in [0, 25, 50] {
            cases.push(Case::new(is_synced, cache_percent));
        }
    }
    for checksum in ["off", "write"] {
        cases.push(Case {
            checksum,
            ..Case::new(true, 0)
        });
    }
    for types in [Types::F32, Types::Bf16Moments] {
        cases.push(Case {
            types,
            threads: if types == Types::F32 { 2 } else { 1 },
            ..Case::new(true, 0)
        });
    }
    cases.into_iter().map(Case::named).collect()
}
