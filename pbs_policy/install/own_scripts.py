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
    hooks = {protocol: find_hook(config, protocol) for protocol in ours}
    services = {protocol: _post_login(config, protocol) for protocol in ours}
    found = []
    for protocol, hook in hooks.items():
        if not services[protocol] or (hook and not hook.others):
            continue  # nothing but what the drop-in may replace
        if hook and hook.others and not hook.after and hook.recorded_service == protocol:
            found.append(hook)
            continue
        service = services[protocol]
        sharing = [each for each in ours if services[each] == service]
        runs, place = executable(config, protocol), config.place((f"service {protocol}",), "executable")
        seen = f"{place}: service {protocol} has executable = {printable(runs)}: the drop-in would replace it, and "
        seen += f"what service {printable(service)} runs would run no more"
        if hook:
            seen = f"{hook.place}: service {printable(service)} has executable = {executable(config, service)}"
        seen += f". By hand: {'a service for each protocol, ' if len(sharing) > 1 else ''}our script last, since a "
        seen += "login that a later script refuses is recorded by then"
        written = "".join(_service(config, each, service, ours[each], len(sharing) > 1) for each in sharing)
        after = "# then install-hook --apply once more, which puts the script in place, and doveadm reload\n"
        raise InstallError(seen, by_hand=written + after)
    return found


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
