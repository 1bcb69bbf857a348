// Package azure tests the scripts for AKS (scripts/aks) with the real Azure CLI. An
// Azure Resource Manager in memory, package arm, is the Azure that az talks to:
//
//	make aks-test
//
// The tests need az. Without it, they are skipped; TANDEM_AZURE_INSTALL=1 installs it
// below out/. Most of them put a kubectl on PATH that only records; TestKind_Serves
// deploys to the kind cluster of TANDEM_E2E_CONTEXT.
package azure
