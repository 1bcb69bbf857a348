// Package azure tests the scripts for AKS (scripts/aks) with the real Azure CLI. An
// Azure Resource Manager in memory, package arm, is the Azure that az talks to:
//
//	make aks-test
//
// The tests need az. Without it, they are skipped; TANDEM_AZURE_INSTALL=1 installs it
// below out/. Most of them put a kubectl on PATH that only records; TestKind_Serves
// deploys to the kind cluster of TANDEM_E2E_CONTEXT.
//
// A case runs az up to a hundred times, and most of the time that az takes is Python's
// import of its code. So testdata/azserver.py imports it once, and forks for each command;
// the az on PATH, the program in the folder az, hands the command to it. The code of az is
// unchanged: the server calls its main. TestAzServer_IsAz compares both, and
// TestUp_DryRunIsTheRecipe runs the recipe without the server.
package azure
