"""May this client relay this message now? The rules, what they are asked of, and the reasons they give.

`policy` holds the rules, pure; `case` is one relay attempt and what the login table has for it; `shortcut` the short
way to nearly every OK. `check`, `explain` and `steps` take the same decision at leisure, and say it in words.
"""
