/*
 * A stand-in for Steampipe's standalone wrappers, which are Go programs inside a C library. It does
 * what README.md says was measured with real ones, and no better. The including file defines NAME.
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "access/htup_details.h"
#include "commands/defrem.h"
#include "executor/tuptable.h"
#include "foreign/fdwapi.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "optimizer/pathnode.h"
#include "optimizer/planmain.h"
#include "optimizer/restrictinfo.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "portability/instr_time.h"
#include "utils/wait_event.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

/* The configuration that a session read first, by connection. */
typedef struct Configuration
{
	char	   *connection;
	char	   *token;
	int			seconds;
	int			rows;
	int			row_microseconds;
	struct Configuration *next;
} Configuration;

static Configuration *configurations = NULL;
static bool is_second = false;

void
_PG_init(void)
{
	void	  **loaded = find_rendezvous_variable("spcd_steampipe_stand_in");

	is_second = *loaded != NULL && strcmp(*loaded, NAME) != 0;
	if (*loaded == NULL)
		*loaded = NAME;
}

/* The calls of the library that is loaded second land in the first. */
static void
call(void)
{
	if (is_second)
		raise(SIGSEGV);
}

/* Parses lines of the form: name = value. */
static Configuration *
configuration_of(const char *connection, ForeignServer *server)
{
	Configuration *found;
	char	   *text = "";
	char	   *line;
	char	   *rest;
	ListCell   *cell;
	MemoryContext before;

	for (found = configurations; found != NULL; found = found->next)
		if (strcmp(found->connection, connection) == 0)
			return found;
	foreach(cell, server->options)
	{
		DefElem    *option = (DefElem *) lfirst(cell);

		if (strcmp(option->defname, "config") == 0)
			text = defGetString(option);
	}
	before = MemoryContextSwitchTo(TopMemoryContext);
	found = palloc0(sizeof(Configuration));
	found->connection = pstrdup(connection);
	found->token = pstrdup("");
	for (line = strtok_r(pstrdup(text), "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest))
	{
		char		name[64];
		char		value[1024] = "";

		if (sscanf(line, " %63[a-z_] = \"%1023[^\"]\"", name, value) < 1)
			continue;
		if (strcmp(name, "token") == 0)
			found->token = pstrdup(value);
		else if (strcmp(name, "seconds") == 0)
			sscanf(line, " seconds = %d", &found->seconds);
		else if (strcmp(name, "panic") == 0)
			_exit(2);
		else if (strcmp(name, "rows") == 0)
			sscanf(line, " rows = %d", &found->rows);
		else if (strcmp(name, "row_microseconds") == 0)
			sscanf(line, " row_microseconds = %d", &found->row_microseconds);
		else
			ereport(ERROR, (errcode(ERRCODE_FDW_ERROR),
							errmsg("failed to parse connection config for connection '%s': "
								   "Unsupported argument: An argument named \"%s\" is not expected here.",
								   connection, name)));
	}
	MemoryContextSwitchTo(before);
	found->next = configurations;
	configurations = found;
	return found;
}

static void
estimate(PlannerInfo *root, RelOptInfo *rel, Oid table)
{
	rel->rows = 1;
}

static void
make_paths(PlannerInfo *root, RelOptInfo *rel, Oid table)
{
#if PG_VERSION_NUM >= 180000
	add_path(rel, (Path *) create_foreignscan_path(root, rel, NULL, 1, 0, 1, 1, NIL, NULL, NULL, NIL, NIL));
#elif PG_VERSION_NUM >= 170000
	add_path(rel, (Path *) create_foreignscan_path(root, rel, NULL, 1, 1, 1, NIL, NULL, NULL, NIL, NIL));
#else
	add_path(rel, (Path *) create_foreignscan_path(root, rel, NULL, 1, 1, 1, NIL, NULL, NULL, NIL));
#endif
}

static ForeignScan *
make_plan(PlannerInfo *root, RelOptInfo *rel, Oid table, ForeignPath *path, List *targets,
		  List *clauses, Plan *outer)
{
	return make_foreignscan(targets, extract_actual_clauses(clauses, false), rel->relid, NIL, NIL,
							NIL, NIL, outer);
}

/* Fails as a table's hydrate functions do. */
static void
act(ForeignScanState *state, const char *connection, const char *table, Configuration *configuration)
{
	if (strcmp(table, "panic") == 0)
		_exit(2);
	if (strcmp(table, "fails") == 0)
		ereport(ERROR, (errcode(ERRCODE_FDW_ERROR), errmsg("%s: fatalError", connection)));
	if (strcmp(table, "wants_id") == 0 && state->ss.ps.plan->qual == NIL)
		ereport(ERROR, (errcode(ERRCODE_FDW_ERROR),
						errmsg("'Get' call for table '%s' is missing 1 required qual: "
							   "column:'id' operator: =", table)));
	if (strcmp(table, "slow") == 0)
		for (int waited = 0; waited < configuration->seconds * 100; waited++)
		{
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10, PG_WAIT_EXTENSION);
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
}

/* A row takes processor time, which no other row of the session gets meanwhile. */
static void
work(int microseconds)
{
	instr_time	began;
	instr_time	now;

	if (microseconds <= 0)
		return;
	INSTR_TIME_SET_CURRENT(began);
	do
	{
		INSTR_TIME_SET_CURRENT(now);
		INSTR_TIME_SUBTRACT(now, began);
	} while (INSTR_TIME_GET_MICROSEC(now) < microseconds);
}

static void
begin_scan(ForeignScanState *state, int flags)
{
	state->fdw_state = palloc0(sizeof(int));
}

static TupleTableSlot *
next_row(ForeignScanState *state)
{
	Relation	relation = state->ss.ss_currentRelation;
	TupleTableSlot *slot = state->ss.ss_ScanTupleSlot;
	char	   *connection = get_namespace_name(RelationGetNamespace(relation));
	ForeignTable *table = GetForeignTable(RelationGetRelid(relation));
	Configuration *configuration;
	int		   *returned = (int *) state->fdw_state;

	ExecClearTuple(slot);
	call();
	configuration = configuration_of(connection, GetForeignServer(table->serverid));
	if (*returned >= Max(configuration->rows, 1))
		return slot;
	if ((*returned)++ == 0)
		act(state, connection, RelationGetRelationName(relation), configuration);
	work(configuration->row_microseconds);
	for (int n = 0; n < slot->tts_tupleDescriptor->natts; n++)
	{
		char	   *name = NameStr(TupleDescAttr(slot->tts_tupleDescriptor, n)->attname);

		slot->tts_isnull[n] = false;
		if (strcmp(name, "id") == 0)
			slot->tts_values[n] = Int32GetDatum(1);
		else if (strcmp(name, "token") == 0)
			slot->tts_values[n] = CStringGetTextDatum(configuration->token);
		else if (strcmp(name, "sp_connection_name") == 0)
			slot->tts_values[n] = CStringGetTextDatum(connection);
		else
			slot->tts_isnull[n] = true;
	}
	return ExecStoreVirtualTuple(slot);
}

static void
rescan(ForeignScanState *state)
{
	*(int *) state->fdw_state = 0;
}

static void
end_scan(ForeignScanState *state)
{
}

static List *
import_tables(ImportForeignSchemaStmt *statement, Oid server_oid)
{
	static const char *const TABLES[] = {
		"account (id integer, token text", "slow (id integer", "panic (id integer",
		"fails (id integer", "wants_id (id integer", "tree (id integer, path ltree",
	};
	ForeignServer *server = GetForeignServer(server_oid);
	List	   *statements = NIL;

	call();
	configuration_of(statement->local_schema, server);
	for (size_t n = 0; n < lengthof(TABLES); n++)
		statements = lappend(statements, psprintf(
			"CREATE FOREIGN TABLE %s, sp_connection_name text, sp_ctx jsonb, _ctx jsonb) SERVER %s",
			TABLES[n], quote_identifier(server->servername)));
	return statements;
}

PG_FUNCTION_INFO_V1(steampipe_handler);
PG_FUNCTION_INFO_V1(steampipe_validator);

Datum
steampipe_handler(PG_FUNCTION_ARGS)
{
	FdwRoutine *routine = makeNode(FdwRoutine);

	routine->GetForeignRelSize = estimate;
	routine->GetForeignPaths = make_paths;
	routine->GetForeignPlan = make_plan;
	routine->BeginForeignScan = begin_scan;
	routine->IterateForeignScan = next_row;
	routine->ReScanForeignScan = rescan;
	routine->EndForeignScan = end_scan;
	routine->ImportForeignSchema = import_tables;
	PG_RETURN_POINTER(routine);
}

/* A configuration is parsed at an import and at a scan, never here. */
Datum
steampipe_validator(PG_FUNCTION_ARGS)
{
	PG_RETURN_VOID();
}
