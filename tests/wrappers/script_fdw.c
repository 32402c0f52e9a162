/*
 * script_fdw: a foreign data wrapper for tests, whose import does what a file says.
 *
 * The server option "file" names it. A line that begins with WARNING or NOTICE is sent as such, and
 * may hold a detail after " | ". Every other line is a statement of the import, in which {server}
 * stands for the server's name. The tables are empty.
 */
#include "postgres.h"

#include "commands/defrem.h"
#include "foreign/fdwapi.h"
#include "foreign/foreign.h"
#include "nodes/makefuncs.h"
#include "optimizer/pathnode.h"
#include "optimizer/planmain.h"
#include "optimizer/restrictinfo.h"
#include "utils/builtins.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(script_fdw_handler);

static void
estimate(PlannerInfo *root, RelOptInfo *rel, Oid table)
{
	rel->rows = 0;
}

static void
make_paths(PlannerInfo *root, RelOptInfo *rel, Oid table)
{
#if PG_VERSION_NUM >= 180000
	add_path(rel, (Path *) create_foreignscan_path(root, rel, NULL, 0, 0, 0, 0, NIL, NULL, NULL, NIL, NIL));
#elif PG_VERSION_NUM >= 170000
	add_path(rel, (Path *) create_foreignscan_path(root, rel, NULL, 0, 0, 0, NIL, NULL, NULL, NIL, NIL));
#else
	add_path(rel, (Path *) create_foreignscan_path(root, rel, NULL, 0, 0, 0, NIL, NULL, NULL, NIL));
#endif
}

static ForeignScan *
make_plan(PlannerInfo *root, RelOptInfo *rel, Oid table, ForeignPath *path, List *targets,
		  List *clauses, Plan *outer)
{
	return make_foreignscan(targets, extract_actual_clauses(clauses, false), rel->relid, NIL, NIL,
							NIL, NIL, outer);
}

static void
begin_scan(ForeignScanState *state, int flags)
{
}

static TupleTableSlot *
next_row(ForeignScanState *state)
{
	return ExecClearTuple(state->ss.ss_ScanTupleSlot);
}

static void
end_scan(ForeignScanState *state)
{
}

static char *
with_server(const char *line, const char *server)
{
	StringInfoData text;
	const char *mark;

	initStringInfo(&text);
	while ((mark = strstr(line, "{server}")) != NULL)
	{
		appendBinaryStringInfo(&text, line, mark - line);
		appendStringInfoString(&text, quote_identifier(server));
		line = mark + strlen("{server}");
	}
	appendStringInfoString(&text, line);
	return text.data;
}

/* Sends a line that begins with a severity; false: it is a statement. */
static bool
is_sent(char *line, const char *severity, int level)
{
	char	   *message;
	char	   *detail;

	if (strncmp(line, severity, strlen(severity)) != 0)
		return false;
	message = line + strlen(severity);
	detail = strstr(message, " | ");
	if (detail != NULL)
	{
		*detail = '\0';
		detail += strlen(" | ");
	}
	ereport(level, (errmsg("%s", message), detail ? errdetail("%s", detail) : 0));
	return true;
}

static List *
import_tables(ImportForeignSchemaStmt *statement, Oid server_oid)
{
	ForeignServer *server = GetForeignServer(server_oid);
	List	   *statements = NIL;
	ListCell   *cell;
	const char *path = NULL;
	char		line[8192];
	FILE	   *file;

	foreach(cell, server->options)
	{
		DefElem    *option = (DefElem *) lfirst(cell);

		if (strcmp(option->defname, "file") == 0)
			path = defGetString(option);
	}
	if (path == NULL || (file = fopen(path, "r")) == NULL)
		ereport(ERROR, (errcode(ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION),
						errmsg("script_fdw: cannot open the file")));
	while (fgets(line, sizeof(line), file) != NULL)
	{
		line[strcspn(line, "\n")] = '\0';
		if (line[0] == '\0' || is_sent(line, "WARNING ", WARNING) || is_sent(line, "NOTICE ", NOTICE))
			continue;
		statements = lappend(statements, with_server(line, server->servername));
	}
	fclose(file);
	return statements;
}

Datum
script_fdw_handler(PG_FUNCTION_ARGS)
{
	FdwRoutine *routine = makeNode(FdwRoutine);

	routine->GetForeignRelSize = estimate;
	routine->GetForeignPaths = make_paths;
	routine->GetForeignPlan = make_plan;
	routine->BeginForeignScan = begin_scan;
	routine->IterateForeignScan = next_row;
	routine->ReScanForeignScan = end_scan;
	routine->EndForeignScan = end_scan;
	routine->ImportForeignSchema = import_tables;
	PG_RETURN_POINTER(routine);
}
