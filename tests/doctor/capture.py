"""Writes down what the installed doveconf says of the cases for its version: `python -m tests.doctor.capture`.

To be run with Dovecot 2.3 and with 2.4, whenever a case has changed; `test_cases` says so where it was forgotten.
"""

from __future__ import annotations

from tests.doctor.installation import cases, live, runs_doveconf


def main() -> None:
    """Capture all of them."""
    for case in [*cases("broken"), *cases("sound")]:
        if case.has_dovecot and runs_doveconf(case.dovecot_version):
            said = live(case)
            text = f"status {said.status}\n{said.err}" if said.status else said.out
            (case.directory / "doveconf").write_text(text)


if __name__ == "__main__":
    main()
