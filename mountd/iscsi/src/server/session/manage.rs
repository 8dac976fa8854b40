//! Task management (RFC 7143, 11.5 and 11.6).

use super::numbers::Stat;
use super::{Session, job::Done};
use crate::error::Error;
use crate::proto::pdu::{FunctionResponse, TaskManagementRequest, TaskManagementResponse};
use crate::scsi::Function;

/// Functions of one session that may wait at once.
const MAX_MANAGING: usize = 64;

impl Session {
    pub(super) fn manage(&mut self, request: &TaskManagementRequest) -> Result<(), Error> {
        if !self.is_due(request.immediate, request.cmd_sn)? {
            return Ok(());
        }
        let tag = request.initiator_task_tag;
        let (Some(nexus), Some(held)) = (&self.nexus, &self.held) else {
            self.send_managed(tag, FunctionResponse::Rejected);
            return Ok(());
        };
        let Some(function) = Function::from_code(request.function) else {
            self.send_managed(tag, FunctionResponse::Unsupported);
            return Ok(());
        };
        if self.managing >= MAX_MANAGING {
            self.send_managed(tag, FunctionResponse::Rejected);
            return Ok(());
        }
        tracing::debug!(initiator = self.initiator, ?function, "task management");
        let managed =
            held.device().manage(nexus, function, request.lun, request.referenced_task_tag);
        if function == Function::TargetColdReset {
            held.end_others();
        }
        // What no thread has is gone now; what one has is answered for when it is over.
        self.sweep();
        if managed.running.is_empty() {
            self.send_managed(tag, managed.response);
            return Ok(());
        }
        self.managing += 1;
        let sender = self.sender.clone();
        let response = managed.response;
        tokio::spawn(async move {
            for task in managed.running {
                task.ended().await;
            }
            // The receiver is gone when the session is.
            let _ = sender.send(Done::Managed { tag, response });
        });
        Ok(())
    }

    pub(super) fn send_managed(&mut self, tag: u32, response: FunctionResponse) {
        let response = TaskManagementResponse { initiator_task_tag: tag, response };
        self.send(response.encode(), &[], Stat::Used);
    }
}
