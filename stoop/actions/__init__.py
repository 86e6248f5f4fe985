"""The catalogue of actions: one file an action, one line here. Importing it does no I/O of its own."""

from __future__ import annotations

from stoop.actions.aws import lambda_ as aws_lambda
from stoop.actions.calico import networkpolicy as calico_networkpolicy
from stoop.actions.cilium import networkpolicy as cilium_networkpolicy
from stoop.actions.container import freeze as container_freeze
from stoop.actions.container import kill as container_kill
from stoop.actions.container import limit as container_limit
from stoop.actions.evidence import memory as evidence_memory
from stoop.actions.evidence import pcap as evidence_pcap
from stoop.actions.evidence import snapshot as evidence_snapshot
from stoop.actions.file import quarantine as file_quarantine
from stoop.actions.gcp import function as gcp_function
from stoop.actions.kubernetes import annotation as kubernetes_annotation
from stoop.actions.kubernetes import cordon as kubernetes_cordon
from stoop.actions.kubernetes import delete as kubernetes_delete
from stoop.actions.kubernetes import download as kubernetes_download
from stoop.actions.kubernetes import drain as kubernetes_drain
from stoop.actions.kubernetes import exec as kubernetes_exec
from stoop.actions.kubernetes import label as kubernetes_label
from stoop.actions.kubernetes import log as kubernetes_log
from stoop.actions.kubernetes import networkpolicy as kubernetes_networkpolicy
from stoop.actions.kubernetes import script as kubernetes_script
from stoop.actions.kubernetes import sysdig as kubernetes_sysdig
from stoop.actions.kubernetes import tcpdump as kubernetes_tcpdump
from stoop.actions.kubernetes import terminate as kubernetes_terminate
from stoop.actions.network import block as network_block
from stoop.actions.network import isolate as network_isolate
from stoop.actions.process import kill as process_kill
from stoop.actions.process import suspend as process_suspend
from stoop.spec import (
    Action,
)

ACTIONS: tuple[Action, ...] = (
    process_kill.ACTION,
    process_suspend.ACTION,
    container_kill.ACTION,
    container_freeze.ACTION,
    container_limit.ACTION,
    evidence_snapshot.ACTION,
    evidence_memory.ACTION,
    file_quarantine.ACTION,
    evidence_pcap.ACTION,
    network_isolate.ACTION,
    network_block.ACTION,
    kubernetes_terminate.ACTION,
    kubernetes_label.ACTION,
    kubernetes_annotation.ACTION,
    kubernetes_networkpolicy.ACTION,
    kubernetes_exec.ACTION,
    kubernetes_script.ACTION,
    kubernetes_log.ACTION,
    kubernetes_delete.ACTION,
    kubernetes_cordon.ACTION,
    kubernetes_drain.ACTION,
    kubernetes_download.ACTION,
    kubernetes_tcpdump.ACTION,
    kubernetes_sysdig.ACTION,
    calico_networkpolicy.ACTION,
    cilium_networkpolicy.ACTION,
    aws_lambda.ACTION,
    gcp_function.ACTION,
)
