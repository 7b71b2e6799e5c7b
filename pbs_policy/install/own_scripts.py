"""The post-login scripts that a site runs itself. No installation takes one away: where there is one, ours is put
behind it by hand, and what was chained by hand is left as it stands."""

from __future__ import annotations

from pbs_policy.dovecot.doveconf import DovecotConfig
from pbs_policy.dovecot.logins import Hook, chain, executable, find_hook, service_behind, sockets
from pbs_policy.install.files import InstallError
from pbs_policy.log import printable


def chained_by_hand(config: DovecotConfig, ours: dict[str, tuple[str, ...]]) -> list[Hook]:
    """The protocols whose own post-login scripts are followed by ours; `ours` is how each protocol runs it.

    Raises InstallError, with the configuration to write, where a script of the site's runs without ours, or after it.
    """
    services = {protocol: _post_login(config, protocol) for protocol in ours}
    found, wrong = [], []
    for protocol in ours:
        hook = find_hook(config, protocol)
        if not services[protocol] or (hook and not hook.others):
            continue  # nothing but what the drop-in may replace
        if hook and not hook.after and hook.recorded_service == protocol:
            found.append(hook)
        else:
            wrong.append(protocol)
    if wrong:
        shared = len(set(services.values())) < len(services)
        meant = list(ours) if shared else wrong
        written = "".join(_service(config, each, services[each], ours[each], shared) for each in meant)
        after = "# then install-hook --apply once more, which puts the script in place, and doveadm reload\n"
        raise InstallError(_refusal(config, wrong[0], services[wrong[0]], shared), by_hand=written + after)
    return found


def _refusal(config: DovecotConfig, protocol: str, service: str, shared: bool) -> str:
    runs, place = executable(config, protocol), config.place((f"service {protocol}",), "executable")
    seen = f"{place}: service {protocol} has executable = {printable(runs)}: the drop-in would replace it, and what "
    seen += f"service {printable(service)} runs would run no more"
    hook = find_hook(config, protocol)
    if hook:
        seen = f"{hook.place}: service {printable(service)} has executable = {printable(executable(config, service))}"
    return (
        f"{seen}. By hand: {'a service for each protocol, ' if shared else ''}our script last, since a login that a "
        "later script refuses is recorded by then"
    )


def _post_login(config: DovecotConfig, protocol: str) -> str:
    return next((service_behind(config, socket) for socket in sockets(config, protocol)), "")


def _service(config: DovecotConfig, protocol: str, service: str, ours: tuple[str, ...], shared: bool) -> str:
    hook = find_hook(config, protocol)
    others = hook.others if hook else executable(config, service).split()
    line = f"  executable = {chain(others, *ours)}\n"
    if not shared:
        return f"service {service} {{\n{line}}}\n"
    name, block = f"{protocol}-postlogin", (f"service {service}",)
    kept = [each for each in config.effective if each.blocks == block and each.name not in ("", "executable")]
    more = "".join(f"  {each.name} = {each.value}\n" for each in kept)
    listener = f"  unix_listener {name} {{\n  }}\n"
    return (
        f"service {protocol} {{\n  executable = {protocol} {name}\n}}\nservice {name} {{\n{line}{more}{listener}}}\n"
    )
