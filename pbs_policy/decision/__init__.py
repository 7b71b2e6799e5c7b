"""May this client relay this message now? The rules, what they are asked of, and the reasons they give.

`decide` is the page to read: the rules in their order. `rules` has the settings and the reasons; `case` is one relay
attempt, `candidate` a login or permit that may be the answer, `against` what stands against it, `caps` what is
counted. `check` takes the same decision at leisure, and `words` says it rule by rule.
"""
