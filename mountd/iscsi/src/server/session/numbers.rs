//! Command and status numbering (RFC 7143, 4.2.2).

use crate::proto::Serial;

/// Where the numbers of ExpCmdSN and so on lie in every PDU of a target.
const STAT_SN: usize = 24;
const EXP_CMD_SN: usize = 28;
const MAX_CMD_SN: usize = 32;

/// What becomes of a command by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It is the next one, or immediate.
    InTurn,
    /// It is outside of the window: it is ignored without a word (RFC 7143, 4.2.2.1).
    Outside,
    /// One before it is missing. Over one connection nothing can be on its way elsewhere.
    Gap,
}

/// What status number a PDU bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stat {
    /// The next one, which is used up.
    Used,
    /// The next one, which is not.
    Peeked,
    /// None.
    Absent,
}

#[derive(Debug)]
pub(super) struct Numbers {
    stat_sn: Serial,
    exp_cmd_sn: Serial,
    max_cmd_sn: Serial,
    window: u32,
    /// Commands that are not over.
    under_way: u32,
}

impl Numbers {
    /// After a login whose last request had the number `cmd_sn`.
    pub(super) fn new(stat_sn: Serial, cmd_sn: Serial, window: u32) -> Self {
        let max_cmd_sn = cmd_sn.plus(window - 1);
        Self { stat_sn, exp_cmd_sn: cmd_sn, max_cmd_sn, window, under_way: 0 }
    }

    pub(super) fn arrive(&mut self, immediate: bool, cmd_sn: Serial) -> Arrival {
        let last = self.max_cmd_sn;
        if cmd_sn.is_before(self.exp_cmd_sn) || last.is_before(cmd_sn) {
            // An immediate command bears the number of the next one, and does not use it up.
            return if immediate && cmd_sn == self.exp_cmd_sn {
                Arrival::InTurn
            } else {
                Arrival::Outside
            };
        }
        if immediate {
            return Arrival::InTurn;
        }
        if cmd_sn != self.exp_cmd_sn {
            return Arrival::Gap;
        }
        self.exp_cmd_sn = self.exp_cmd_sn.plus(1);
        Arrival::InTurn
    }

    /// How many commands are not over: the window has room for the others. Every PDU tells of it, as nothing else would: an
    /// initiator that has used up its window waits for one.
    pub(super) fn set_under_way(&mut self, commands: usize) {
        self.under_way = u32::try_from(commands).unwrap_or(u32::MAX);
    }

    /// Opens the window as far as there is room. It never closes again.
    fn open(&mut self) {
        let room = self.window.saturating_sub(self.under_way);
        let last = self.exp_cmd_sn.plus(room).minus(1);
        if self.max_cmd_sn.is_before(last) {
            self.max_cmd_sn = last;
        }
    }

    /// Takes back a number that was used up: its PDU is not sent after all.
    pub(super) fn unstamp(&mut self) {
        self.stat_sn = self.stat_sn.minus(1);
    }

    /// Writes the numbers into a header.
    pub(super) fn stamp(&mut self, header: &mut [u8], stat: Stat) {
        self.open();
        let stat_sn = match stat {
            Stat::Absent => 0,
            Stat::Used | Stat::Peeked => self.stat_sn.get(),
        };
        if stat == Stat::Used {
            self.stat_sn = self.stat_sn.plus(1);
        }
        header[STAT_SN..STAT_SN + 4].copy_from_slice(&stat_sn.to_be_bytes());
        header[EXP_CMD_SN..EXP_CMD_SN + 4].copy_from_slice(&self.exp_cmd_sn.get().to_be_bytes());
        header[MAX_CMD_SN..MAX_CMD_SN + 4].copy_from_slice(&self.max_cmd_sn.get().to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A window that was used up whole is open again in the very PDU that ends a command: no other may come.
    #[test]
    fn the_last_answer_opens_the_window() {
        let mut numbers = Numbers::new(Serial::new(1), Serial::new(u32::MAX - 3), 8);
        let told = |numbers: &mut Numbers| {
            let mut header = [0; 48];
            numbers.stamp(&mut header, Stat::Used);
            let get = |at: usize| {
                Serial::new(u32::from_be_bytes([
                    header[at],
                    header[at + 1],
                    header[at + 2],
                    header[at + 3],
                ]))
            };
            (get(EXP_CMD_SN), get(MAX_CMD_SN))
        };
        for under_way in [0, 8] {
            let (first, last) = told(&mut numbers);
            assert_eq!(last, first.plus(7));
            for i in 0..8 {
                assert_eq!(numbers.arrive(false, first.plus(i)), Arrival::InTurn);
            }
            assert_eq!(numbers.arrive(false, first.plus(8)), Arrival::Outside);
            numbers.set_under_way(under_way);
            let (expected, last) = told(&mut numbers);
            assert_eq!(last, expected.plus(8 - under_way as u32).minus(1));
            numbers.set_under_way(0);
        }
    }
}
