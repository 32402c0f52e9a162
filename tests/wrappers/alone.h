/*
 * A foreign data wrapper for tests that shares a server process with no other of its kind, as the
 * Go programs behind Steampipe's wrappers do not: each brings a language runtime along, and the
 * second one's calls land in the first. Here the second library that is loaded ends the process at
 * once, which is stricter.
 *
 * The including file defines NAME and HANDLER. The server option "crash" names a file: while it
 * exists, an import ends the process as a panic of a Go plugin does, with exit status 2. Every
 * import makes the tables one and two.
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "commands/defrem.h"
#include "fmgr.h"
#include "foreign/fdwapi.h"
#include "foreign/foreign.h"
#include "utils/builtins.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

void
_PG_init(void)
{
	void	  **loaded = find_rendezvous_variable("spcd_alone_wrapper");

	if (*loaded != NULL && strcmp(*loaded, NAME) != 0)
	{
		elog(LOG, "a second wrapper of its kind was loaded: %s after %s", NAME, (char *) *loaded);
		raise(SIGSEGV);
	}
	*loaded = NAME;
}

static List *
import_tables(ImportForeignSchemaStmt *statement, Oid server_oid)
{
	ForeignServer *server = GetForeignServer(server_oid);
	const char *name = quote_identifier(server->servername);
	ListCell   *cell;

	foreach(cell, server->options)
	{
		DefElem    *option = (DefElem *) lfirst(cell);

		if (strcmp(option->defname, "crash") == 0 && access(defGetString(option), F_OK) == 0)
			_exit(2);
	}
	return list_make2(psprintf("CREATE FOREIGN TABLE one (id integer) SERVER %s", name),
					  psprintf("CREATE FOREIGN TABLE two (id integer, note text) SERVER %s", name));
}

PG_FUNCTION_INFO_V1(alone_handler);
PG_FUNCTION_INFO_V1(alone_validator);

Datum
alone_handler(PG_FUNCTION_ARGS)
{
	FdwRoutine *routine = makeNode(FdwRoutine);

	routine->ImportForeignSchema = import_tables;
	PG_RETURN_POINTER(routine);
}

Datum
alone_validator(PG_FUNCTION_ARGS)
{
	PG_RETURN_VOID();
}
