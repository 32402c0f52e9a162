//! Scripts that once showed a defect, as small as they could be made.

use spcd_core::health::FailureKind::{Authentication, Refused};
use spcd_core::scheduler::Action::{Disconnect, Reconnect, Refresh, Retry};

use crate::script::Act::{
    Alter, Full, Kill, Lock, LoseSession, OnlyHangs, Readers, RefuseExtension, Remove, Request,
    Reshape, Source, Touch, Usurp, Write,
};
use crate::script::Behaviour::{Crashes, Fails, Hangs, IsSlow};
use crate::script::{Definition, Timed};

/// A script, the seed with which the defect showed, and what it was.
pub struct Golden {
    pub what: &'static str,
    pub seed: u64,
    pub script: Vec<Timed>,
}

fn enabled(database: u8) -> Definition {
    Definition {
        database,
        enabled: true,
    }
}

fn disabled(database: u8) -> Definition {
    Definition {
        database,
        enabled: false,
    }
}

pub fn golden() -> Vec<Golden> {
    let golden = |what, seed, script| Golden { what, seed, script };
    vec![
        golden(
            "a refresh sends credentials that a probe knew to be rejected",
            9,
            vec![
                (0, Write(1, enabled(0))),
                (11_531, Kill),
                (40_261, LoseSession),
                (14_842, Source(1, Fails(Authentication))),
                (253_632, Write(2, enabled(0))),
            ],
        ),
        golden(
            "the error of an import cannot be written, and the source is asked again at once",
            1165,
            vec![
                (0, Write(1, enabled(1))),
                (0, Write(3, enabled(1))),
                (267_445, Remove(0)),
                (123_869, Write(2, disabled(1))),
                (453, Source(2, Fails(Authentication))),
                (1, Full(true)),
                (8_838, Request(Reconnect, Some(0), true)),
            ],
        ),
        golden(
            "a source that is watched anew is probed with credentials that an import knew to be \
             rejected",
            1462,
            vec![
                (0, Write(0, enabled(1))),
                (402, Source(0, Crashes)),
                (12_737, Source(0, Fails(Authentication))),
                (817_397, Source(0, Hangs)),
            ],
        ),
        golden(
            "a requested probe follows a rejection that came between the request and it",
            3763,
            vec![
                (0, Write(0, enabled(0))),
                (0, Write(1, disabled(0))),
                (0, Write(2, disabled(1))),
                (0, Write(3, enabled(1))),
                (15_125, Kill),
                (2, Request(Reconnect, Some(3), false)),
                (2, Source(1, IsSlow)),
                (320, Source(2, Fails(Authentication))),
                (2_568, Kill),
                (613, Request(Disconnect, None, false)),
            ],
        ),
        golden(
            "a crash that is over stays recorded where the server was full at that moment",
            23458,
            vec![
                (0, Write(0, enabled(0))),
                (0, Write(1, enabled(0))),
                (0, Write(2, enabled(0))),
                (1_483, Source(2, Crashes)),
                (12_263, Source(2, Fails(Refused))),
                (25_691, Full(true)),
                (177_360, Write(2, enabled(1))),
            ],
        ),
        golden(
            "a job that asks no source is taken for the source's answer",
            41415,
            vec![
                (0, Write(1, disabled(1))),
                (0, Write(3, enabled(0))),
                (21_910, Source(1, Fails(Authentication))),
                (381_045, Remove(3)),
                (20_003, Write(3, enabled(0))),
                (20_364, Request(Refresh, None, false)),
            ],
        ),
        golden(
            "an import goes on waiting for its turn though a probe says meanwhile that its \
             credentials are rejected",
            66163,
            vec![
                (0, Write(0, enabled(1))),
                (0, Write(1, enabled(0))),
                (0, Write(2, enabled(0))),
                (0, Write(3, enabled(0))),
                (575, Source(0, Fails(Authentication))),
                (776, Write(0, disabled(1))),
                (1_276, Full(true)),
                (751, Kill),
                (7_410, Request(Reconnect, Some(3), false)),
                (653, Full(false)),
                (7_070, Write(2, enabled(1))),
            ],
        ),
        golden(
            "a late probe of an earlier target hides that the new one was rejected",
            71735,
            vec![
                (0, Write(0, enabled(0))),
                (0, Write(1, enabled(0))),
                (0, Write(2, enabled(0))),
                (0, Write(3, enabled(1))),
                (1_135, Source(0, Hangs)),
                (28, Reshape(1)),
                (228_906, Write(1, disabled(1))),
                (15_634, Request(Reconnect, Some(0), true)),
                (149_289, Source(0, Fails(Authentication))),
                (7, Write(0, enabled(1))),
                (377_694, Reshape(0)),
            ],
        ),
        golden(
            "a probe that began before its source was paused and watched anew is forgotten",
            106932,
            vec![
                (0, Write(0, enabled(1))),
                (0, Write(1, enabled(0))),
                (0, Write(2, enabled(1))),
                (0, Write(3, enabled(0))),
                (30, Source(2, Hangs)),
                (1_001, Request(Refresh, Some(2), true)),
                (9_469, Source(2, Fails(Authentication))),
                (632, Request(Disconnect, Some(3), false)),
                (5_340, Request(Reconnect, None, false)),
                (161_809, RefuseExtension(true)),
            ],
        ),
        golden(
            "an aggregator waits for ever for a paused member that was altered and is not repaired",
            2602,
            vec![
                (0, Write(1, enabled(0))),
                (0, Write(3, enabled(1))),
                (19_847, Source(1, Hangs)),
                (14_052, Alter(1)),
                (5_639, Readers(true)),
                (112, Request(Disconnect, Some(3), false)),
                (12, Request(Disconnect, Some(3), false)),
            ],
        ),
        golden(
            "the end of a lock's pause is forgotten where another pass comes before it",
            2917,
            vec![
                (0, Write(4, enabled(0))),
                (5_960, Lock(4, true)),
                (405_338, Request(Reconnect, Some(2), true)),
                (0, OnlyHangs),
            ],
        ),
        golden(
            "a retry that ends the server is read by each next leader, and ends it again",
            571_244,
            vec![
                (0, Write(0, enabled(1))),
                (0, Write(1, enabled(0))),
                (0, Write(3, enabled(0))),
                (0, Write(4, enabled(1))),
                (16_539, Source(0, Crashes)),
                (227_956, Write(4, enabled(0))),
                (1_228, Request(Retry, None, false)),
                (387_164, Write(0, enabled(1))),
                (2_094, Request(Disconnect, Some(0), false)),
                (1_695, Request(Retry, Some(1), false)),
                (10_619, Usurp),
            ],
        ),
        golden(
            "credentials of a removed block that a probe knew to be rejected are sent by its import",
            791_564,
            vec![
                (0, Write(0, disabled(1))),
                (0, Write(1, enabled(0))),
                (0, Write(2, enabled(0))),
                (0, Write(3, disabled(1))),
                (0, Write(4, enabled(0))),
                (3_266, Source(0, Fails(Authentication))),
                (1_119, Write(0, enabled(1))),
                (2_589, Usurp),
                (0, Remove(0)),
                (3, Touch(0)),
            ],
        ),
    ]
}
