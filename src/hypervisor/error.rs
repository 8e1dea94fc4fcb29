//! What can go wrong between Drover and libvirt.

use virt::error::{Error, ErrorNumber};

/// Why a call to the hypervisor failed.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// No connection at the moment; Drover reconnects by itself.
    #[error("no connection to libvirt at {uri}: {reason}; is libvirtd (or virtqemud) running?")]
    NotConnected {
        /// Connection URI.
        uri: String,
        /// Last error, or that the connection is being made.
        reason: String,
    },
    /// The call did not return in time. It may still be running.
    #[error("libvirt did not answer '{what}' within {seconds} s")]
    Timeout {
        /// What was asked.
        what: String,
        /// How long Drover waited, seconds.
        seconds: u64,
    },
    /// There is no such domain on this host.
    #[error("no domain '{0}' on this host")]
    NoDomain(String),
    /// The domain is there but does not run.
    #[error("domain '{0}' does not run; start or resume it first")]
    NotRunning(String),
    /// The running domain has nothing to plug a port into.
    #[error(
        "domain '{0}' has no virtio-serial controller, and libvirt cannot add one to a running \
         domain: shut it down and start it again (its persistent definition, if it has one, \
         has the ports now; otherwise add <controller type='virtio-serial'/> first)"
    )]
    NoController(String),
    /// The guest agent cannot be used.
    #[error("guest agent of domain '{domain}': {problem}: {message}")]
    Agent {
        /// Domain.
        domain: String,
        /// What kind of problem.
        problem: AgentProblem,
        /// libvirt's words.
        message: String,
    },
    /// libvirt refused or failed.
    #[error("libvirt failed at '{what}': {message}")]
    Libvirt {
        /// What was asked.
        what: String,
        /// libvirt's words.
        message: String,
        /// libvirt's error number (`virErrorNumber`).
        code: u32,
    },
    /// libvirt answered something that cannot be understood.
    #[error("libvirt's answer to '{what}' cannot be used: {message}")]
    Answer {
        /// What was asked.
        what: String,
        /// Why not.
        message: String,
    },
    /// A thread could not be started.
    #[error("cannot start a thread for libvirt")]
    Thread(#[source] std::io::Error),
}

/// Kinds of problems with a guest agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentProblem {
    /// The domain has no agent channel.
    NotConfigured,
    /// Nothing answers in the guest.
    NotAnswering,
    /// The agent answers but does not allow the command.
    Disabled,
    /// The command failed in the guest.
    Failed,
}

impl std::fmt::Display for AgentProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotConfigured => {
                "not configured (add the channel org.qemu.guest_agent.0 to the domain)"
            }
            Self::NotAnswering => "does not answer (is qemu-guest-agent running in the guest?)",
            Self::Disabled => "does not allow the command",
            Self::Failed => "the command failed",
        })
    }
}

impl HypervisorError {
    /// Wraps an error of libvirt; `domain` is the domain the call was about, if any.
    pub(super) fn from_virt(what: &str, domain: Option<&str>, e: &Error) -> Self {
        let code = e.code().to_raw();
        if let Some(domain) = domain
            && e.code().is(ErrorNumber::NoDomain)
        {
            return Self::NoDomain(domain.to_owned());
        }
        Self::Libvirt {
            what: what.to_owned(),
            message: one_line(e.message()),
            code,
        }
    }

    /// Wraps an error of an agent command.
    pub(super) fn from_agent(domain: &str, e: &Error) -> Self {
        let code = e.code().to_raw();
        let problem = match code {
            virt_sys::VIR_ERR_NO_DOMAIN => return Self::NoDomain(domain.to_owned()),
            virt_sys::VIR_ERR_OPERATION_INVALID => return Self::NotRunning(domain.to_owned()),
            virt_sys::VIR_ERR_ARGUMENT_UNSUPPORTED | virt_sys::VIR_ERR_NO_SUPPORT => {
                AgentProblem::NotConfigured
            }
            virt_sys::VIR_ERR_AGENT_UNRESPONSIVE
            | virt_sys::VIR_ERR_AGENT_UNSYNCED
            | virt_sys::VIR_ERR_AGENT_COMMAND_TIMEOUT
            | virt_sys::VIR_ERR_OPERATION_TIMEOUT => AgentProblem::NotAnswering,
            _ if e.message().contains("has been disabled")
                || e.message().contains("has not been found")
                || e.message().contains("is not allowed") =>
            {
                AgentProblem::Disabled
            }
            virt_sys::VIR_ERR_AGENT_COMMAND_FAILED | virt_sys::VIR_ERR_INTERNAL_ERROR => {
                AgentProblem::Failed
            }
            _ => return Self::from_virt("guest agent command", Some(domain), e),
        };
        Self::Agent {
            domain: domain.to_owned(),
            problem,
            message: one_line(e.message()),
        }
    }
}

/// Text of the outside world on one line of bounded length, without control characters.
pub(super) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(600)
        .collect::<String>()
        .trim()
        .to_owned()
}
