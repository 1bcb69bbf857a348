// Schemas writes the JSON Schemas that kubeconform checks deploy/ against:
//
//	schemas SWAGGER.json OUTPUT-FOLDER CRDS.yaml... GROUP/VERSION/KIND...
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
		fmt.Fprintln(os.Stderr, "usage: schemas SWAGGER.json OUTPUT-FOLDER CRDS.yaml... GROUP/VERSION/KIND...")
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
	custom, needed := map[string]object{}, map[string]object{}
	for _, w := range wanted {
		switch {
		case strings.HasSuffix(w, ".yaml"):
			err = readCRDs(w, custom)
		case custom[w] != nil:
			err = writeCustom(out, w, custom[w])
		default:
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

// readCRDs adds the schemas of the CustomResourceDefinitions in a file to custom, with
// GROUP/VERSION/KIND as their keys.
func readCRDs(file string, custom map[string]object) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
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
		if err := yaml.Unmarshal([]byte(document), &crd); err != nil {
			return err
		}
		for _, v := range crd.Spec.Versions {
			custom[crd.Spec.Group+"/"+v.Name+"/"+crd.Spec.Names.Kind] = v.Schema.OpenAPIV3Schema
		}
	}
	return nil
}

// writeCustom writes the schema of a custom resource.
func writeCustom(out, gvk string, schema object) error {
	strict(schema, func(string) {})
	// The API server adds these to every schema of a CRD.
	properties := schema["properties"].(object)
	for _, name := range []string{"apiVersion", "kind"} {
		properties[name] = object{"type": "string"}
	}
	properties["metadata"] = object{"type": "object"}
	parts := strings.Split(gvk, "/")
	return write(out, fileName(parts[0], parts[1], parts[2]), schema)
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
			continue
		}
		switch key {
		case "properties": // its keys are names; see below
		case "allOf", "anyOf", "oneOf", "not": // what the object that is declared beside them must also satisfy
		default:
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

// fileName returns kubeconform's {{.ResourceKind}}{{.KindSuffix}}. The suffix has the
// first label of the group, which differs where two groups have the same kind.
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
