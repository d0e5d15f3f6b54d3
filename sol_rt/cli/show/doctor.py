"""`sol-rt doctor` shows what works on this machine, and what to do about the rest."""

from __future__ import annotations

from dataclasses import asdict

import typer

from sol_rt.cli import options
from sol_rt.cli.console import print_json


def doctor(json: options.Json = False, debug: options.Debug = False) -> None:
    """Check each part of the installation. The exit code is 1 if a part is broken."""
    from sol_rt.evaluation.doctor import examine

    findings = examine()
    if json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            print(f"{finding.state:7} {finding.what:{width}}  {finding.detail}")
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)
