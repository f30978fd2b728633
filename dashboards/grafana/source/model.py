"""What the dashboards have in common: panels, their places, variables, and the JSON of Grafana's schema."""

COLUMNS = 24


class Datasource:
    """Where the queries of a dashboard go: the kind of data source, and what makes a query of a panel's."""

    def __init__(self, kind, label, target):
        self.reference = {"type": kind, "uid": "${datasource}"}
        self.kind = kind
        self.label = label
        self.target = target


def row(title):
    """A heading."""
    return {"type": "row", "title": title}


def stat(title, description, unit, *queries):
    """A number or two, a quarter wide."""
    return panel("stat", (6, 4), title, description, unit, queries)


def graph(title, description, unit, *queries):
    """A graph over time, half as wide as the page."""
    return panel("timeseries", (12, 8), title, description, unit, queries)


def table(title, description, *queries):
    """A table, half as wide as the page."""
    return panel("table", (12, 8), title, description, None, queries)


def panel(kind, size, title, description, unit, queries):
    return {
        "type": kind,
        "size": size,
        "title": title,
        "description": description,
        "unit": unit,
        "queries": queries,
    }


def variable(name, query, all_value=None):
    """A choice of values that a query finds; "all" is each of them unless it is said what it is."""
    return {"name": name, "query": query} | ({"allValue": all_value} if all_value else {})


def dashboard(uid, title, description, datasource, variables, panels):
    """The whole page; its panels fill it line by line."""
    placed, x, y, height = [], 0, 0, 0
    for number, given in enumerate(panels, 1):
        width, next_height = given.get("size", (COLUMNS, 1))
        if x + width > COLUMNS:
            x, y, height = 0, y + height, 0
        place = {"h": next_height, "w": width, "x": x, "y": y}
        placed.append(of_schema(number, given, place, datasource))
        x, height = x + width, max(height, next_height)
    choice = {"name": "datasource", "type": "datasource", "label": datasource.label}
    choices = [choice | {"query": datasource.kind}]
    for given in variables:
        head = {"name": given["name"], "type": "query", "label": given["name"]}
        head |= {"datasource": datasource.reference, "query": given["query"], "refresh": 2}
        choices.append(head | {"includeAll": True, "multi": True} | given)
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["saltern"],
        "timezone": "browser",
        "editable": True,
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": choices},
        "panels": placed,
    }


def of_schema(number, given, place, datasource):
    head = {"id": number, "type": given["type"], "title": given["title"]}
    if given["type"] == "row":
        return head | {"collapsed": False, "gridPos": place, "panels": []}
    if given["description"]:
        head["description"] = given["description"]
    targets = []
    for letter, query in zip("ABCDEF", given["queries"]):
        target = {"refId": letter, "datasource": datasource.reference}
        targets.append(target | datasource.target(given["type"], query))
    defaults = {"unit": given["unit"], "min": 0} if given["unit"] else {}
    return head | {
        "datasource": datasource.reference,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": targets,
    }


# Queries are pairs of an expression and a legend.
PROMETHEUS = Datasource(
    "prometheus",
    "Prometheus",
    lambda panel, query: {"expr": query[0], "legendFormat": query[1]},
)

# Queries are SQL for Grafana's own plugin, which also makes a series of each text beside a number.
CLICKHOUSE = Datasource(
    "grafana-clickhouse-datasource",
    "ClickHouse",
    lambda panel, sql: {
        "editorType": "sql",
        "queryType": "timeseries" if panel == "timeseries" else "table",
        "format": 0 if panel == "timeseries" else 1,
        "rawSql": sql,
    },
)
