"""CEL as an API server evaluates it for policies and webhooks: `object`, `namespaceObject`, `variables`.

By an implementation of its own (cel-python, with Google's RE2 for `matches`), so only the language's own functions may
be used in the chart, not Kubernetes' extensions.
"""

import functools

import celpy

ENVIRONMENT = celpy.Environment()


@functools.cache
def program(expression):
    return ENVIRONMENT.program(ENVIRONMENT.compile(expression))


def evaluate(expression, scope):
    """The value of an expression; `scope` are names and what they stand for."""
    value = program(expression).evaluate({name: celpy.json_to_cel(value) for name, value in scope.items()})
    # Its booleans are integers to json_to_cel, when they come back as variables.
    return bool(value) if isinstance(value, celpy.celtypes.BoolType) else value


def matches(conditions, scope):
    """Whether all matchConditions hold."""
    return all(bool(evaluate(c["expression"], scope)) for c in conditions or [])


def judge(policy, scope):
    """What a ValidatingAdmissionPolicy says: the messages of the validations that fail; nothing if it does not apply."""
    spec = policy["spec"]
    if not matches(spec.get("matchConditions"), scope):
        return []
    scope = dict(scope, variables={})
    for variable in spec.get("variables", []):
        scope["variables"][variable["name"]] = evaluate(variable["expression"], scope)
    failed = [v for v in spec["validations"] if not evaluate(v["expression"], scope)]
    return [str(evaluate(v["messageExpression"], scope)) if "messageExpression" in v else v["message"] for v in failed]


def selected(selector, labels):
    """Whether a label selector selects these labels."""
    for rule in (selector or {}).get("matchExpressions", []):
        key, operator, values = rule["key"], rule["operator"], rule.get("values", [])
        holds = {
            "In": key in labels and labels[key] in values,
            "NotIn": key not in labels or labels[key] not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]
        if not holds:
            return False
    return all(labels.get(k) == v for k, v in (selector or {}).get("matchLabels", {}).items())
