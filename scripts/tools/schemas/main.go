// Schemas writes the JSON Schemas that kubeconform checks deploy/ against:
//
//	schemas SWAGGER.json OUTPUT-FOLDER CRD.yaml|GROUP/VERSION/KIND...
//
// scripts/schemas.sh runs it with the right arguments.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

type object = map[string]any

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: schemas SWAGGER.json OUTPUT-FOLDER CRD.yaml|GROUP/VERSION/KIND...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "schemas:", err)
		os.Exit(1)
	}
}

func run(swagger, out string, wanted []string) error {
	text, err := os.ReadFile(swagger)
	if err != nil {
		return err
	}
	var api struct {
		Definitions map[string]object `json:"definitions"`
	}
	if err := json.Unmarshal(text, &api); err != nil {
		return fmt.Errorf("%s: %w", swagger, err)
	}
	needed := map[string]object{}
	for _, w := range wanted {
		if strings.HasSuffix(w, ".yaml") {
			err = writeCRD(out, w)
		} else {
			err = writeKind(out, w, api.Definitions, needed)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", w, err)
		}
	}
	return write(out, "definitions.json", object{"definitions": needed})
}

// writeKind writes a schema that refers to the kind's definition, and adds the
// definitions that it needs.
func writeKind(out, gvk string, all, needed map[string]object) error {
	group, rest, _ := strings.Cut(gvk, "/")
	version, kind, ok := strings.Cut(rest, "/")
	if !ok {
		return fmt.Errorf("want GROUP/VERSION/KIND, with core for the group without a name")
	}
	if group == "core" {
		group = ""
	}
	for name, def := range all {
		kinds, _ := def["x-kubernetes-group-version-kind"].([]any)
		for _, k := range kinds {
			if k := k.(object); k["group"] == group && k["version"] == version && k["kind"] == kind {
				need(name, all, needed)
				return write(out, fileName(group, version, kind), object{"$ref": "definitions.json#/definitions/" + name})
			}
		}
	}
	return fmt.Errorf("no such kind")
}

// need makes a definition strict, and all definitions that it refers to, and adds them
// to needed.
func need(name string, all, needed map[string]object) {
	if needed[name] != nil {
		return
	}
	def := all[name]
	needed[name] = def
	switch {
	// OpenAPI 2 has no type "string or number", and declares these as strings.
	case def["format"] == "int-or-string":
		needed[name] = object{"type": []string{"string", "integer"}}
		return
	case strings.HasSuffix(name, ".api.resource.Quantity"):
		needed[name] = object{"type": []string{"string", "number"}}
		return
	}
	strict(def, func(ref string) { need(strings.TrimPrefix(ref, "#/definitions/"), all, needed) })
}

// writeCRD writes a schema for each version of a CustomResourceDefinition.
func writeCRD(out, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var crd struct {
		Spec struct {
			Group    string
			Names    struct{ Kind string }
			Versions []struct {
				Name   string
				Schema struct {
					OpenAPIV3Schema object `json:"openAPIV3Schema"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(text, &crd); err != nil {
		return err
	}
	for _, v := range crd.Spec.Versions {
		strict(v.Schema.OpenAPIV3Schema, func(string) {})
		if err := write(out, fileName(crd.Spec.Group, v.Name, crd.Spec.Names.Kind), v.Schema.OpenAPIV3Schema); err != nil {
			return err
		}
	}
	return nil
}

// strict makes a schema and all schemas in it reject unknown properties, as the API
// server does. It removes descriptions, which are most of the bytes.
func strict(schema object, refer func(string)) {
	if ref, ok := schema["$ref"].(string); ok {
		refer(ref)
	}
	delete(schema, "description")
	if schema["x-kubernetes-int-or-string"] == true {
		delete(schema, "anyOf") // a number need not match the pattern of a string
		schema["type"] = []string{"string", "integer"}
	}
	properties, _ := schema["properties"].(object)
	if properties != nil && schema["additionalProperties"] == nil && schema["x-kubernetes-preserve-unknown-fields"] != true {
		schema["additionalProperties"] = false
	}
	for key, value := range schema {
		if strings.HasPrefix(key, "x-kubernetes-") {
			delete(schema, key)
		} else if key != "properties" {
			each(value, refer)
		}
	}
	for _, property := range properties {
		each(property, refer)
	}
}

func each(value any, refer func(string)) {
	switch value := value.(type) {
	case object:
		strict(value, refer)
	case []any:
		for _, v := range value {
			each(v, refer)
		}
	}
}

// fileName returns kubeconform's {{.ResourceKind}}{{.KindSuffix}}.
func fileName(group, version, kind string) string {
	name := kind + "-"
	if group != "" {
		group, _, _ = strings.Cut(group, ".")
		name += group + "-"
	}
	return strings.ToLower(name+version) + ".json"
}

func write(folder, name string, schema object) error {
	text, err := json.MarshalIndent(schema, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, name), append(text, '\n'), 0o644)
}
