package arm

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The template of this repository expands to one rule group, for the cluster and the
// workspace of the parameters.
func TestExpand_RuleGroup(t *testing.T) {
	source, err := os.ReadFile("../../../azure/rules.json")
	require.NoError(t, err)
	var template object
	require.NoError(t, json.Unmarshal(source, &template))
	expanded, err := expand(object{"template": template, "parameters": object{
		"workspaceId": object{"value": "/w"}, "clusterId": object{"value": "/c"}, "clusterName": object{"value": "demo"},
		"actionGroupIds": object{"value": []any{"/a", "/b"}},
	}}, "/subscriptions/s/resourceGroups/g", "eastus2")
	require.NoError(t, err)
	require.Len(t, expanded, 1)
	group := expanded[0]
	assert.Equal(t, "tandem-demo", group["name"])
	assert.Equal(t, "eastus2", group["location"])
	assert.Equal(t, []any{"/w", "/c"}, child(group, "properties")["scopes"])
	rules := child(group, "properties")["rules"].([]any)
	alerts := 0
	for _, r := range rules {
		if rule := r.(object); rule["alert"] != nil { // the others record
			alerts++
			assert.Equal(t, []any{object{"actionGroupId": "/a"}, object{"actionGroupId": "/b"}}, rule["actions"])
		}
	}
	assert.NotZero(t, alerts)
}

// A parameter without a value, and an unknown one, are refused.
func TestExpand_ChecksParameters(t *testing.T) {
	template := object{"parameters": object{"name": object{"type": "string"}}, "resources": []any{}}
	_, err := expand(object{"template": template}, "", "")
	assert.ErrorContains(t, err, "parameter name has no value")
	_, err = expand(object{"template": template, "parameters": object{"name": object{"value": "x"}, "other": object{"value": "y"}}}, "", "")
	assert.ErrorContains(t, err, "no parameter other")
}
