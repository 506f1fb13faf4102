"""The files that a cluster on one machine is configured with. Pure: settings in, text out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What a cluster is like. Times in seconds.

    A node that falls silent is called down after slurmd_timeout and about twice message_timeout.
    kill_wait: between TERM and KILL. grace: of a preempted job. cred_expire: a requeued
    job starts no sooner than this. strict: sbatch --mem is refused in partition nomem, and a job
    without a time limit everywhere. user_signal: a preempted batch process gets its --signal.
    """

    gpus: int = 2
    cpus: int = 8
    memory_mb: int = 8000
    slurmd_timeout: int = 8
    message_timeout: int = 5
    kill_wait: int = 3
    grace: int = 10
    cred_expire: int = 20
    preempt: str = "REQUEUE"
    strict: bool = False
    user_signal: bool = False


VARIANTS = {
    "default": Settings(),
    "strict": Settings(strict=True),
    "cancel": Settings(preempt="CANCEL"),
    "user-signal": Settings(user_signal=True),
    "no-gpus": Settings(gpus=0),
}

NODES = ("n0", "n1", "n2", "n3", "n4", "n5")

JOB_SUBMIT = """\
function slurm_job_submit(job, partitions, uid)
   if job.partition == "nomem" and job.pn_min_memory ~= nil
         and job.pn_min_memory < 0x7ffffffffffffffe then
      slurm.log_user("partition nomem: do not ask for memory (--mem)")
      return slurm.ERROR
   end
   if job.time_limit == nil or job.time_limit >= slurm.NO_VAL then
      slurm.log_user("a time limit (--time) is needed on this cluster")
      return slurm.ERROR
   end
   return slurm.SUCCESS
end

function slurm_job_modify(job, record, partitions, uid)
   return slurm.SUCCESS
end
"""


def slurm_conf(
    settings: Settings, *, name: str, root: Path, host: str, user: str, ports: list[int]
) -> str:
    """slurm.conf. ports: of slurmctld, then of the nodes' slurmds."""
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={settings.cpus}"
        f" RealMemory={settings.memory_mb}"
        + (f" Gres=gpu:{settings.gpus}" if settings.gpus else "")
        + " State=UNKNOWN"
        for node, port in zip(NODES, ports[1:], strict=True)
    )
    more = []
    if settings.strict:
        more.append("JobSubmitPlugins=lua")
    if settings.user_signal:
        more.append("SlurmctldParameters=preempt_send_user_signal")
    return f"""\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire={settings.cred_expire}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=5,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode={settings.preempt}
SlurmdTimeout={settings.slurmd_timeout}
MessageTimeout={settings.message_timeout}
KillWait={settings.kill_wait}
MinJobAge=300
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
{chr(10).join(more)}
{nodes}
PartitionName=DEFAULT MaxTime=INFINITE State=UP PriorityTier=5 PreemptMode=OFF
PartitionName=gpu Nodes=n[0-3] Default=YES
PartitionName=cpu Nodes=n[4-5]
PartitionName=nomem Nodes=n[0-3]
PartitionName=low Nodes=n[0-5] PriorityTier=1 PreemptMode={settings.preempt} \
GraceTime={settings.grace}
PartitionName=high Nodes=n[0-5] PriorityTier=9
"""


def gres_conf(settings: Settings, root: Path) -> str:
    """gres.conf: files that stand for GPUs."""
    if not settings.gpus:
        return ""
    last = settings.gpus - 1
    return f"NodeName=n[0-5] Name=gpu File={root}/gpu[0-{last}]\n"
